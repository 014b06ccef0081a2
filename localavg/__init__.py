"""SGD with local updates and periodic averaging over MPI.

Importing the package loads neither MPI, torch, CuPy nor h5py; each module brings what it needs.
"""

__version__ = "0.1.0"
