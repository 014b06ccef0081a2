"""How a mean travels: one file a transport, all with the methods of `mpi.HostMPI`."""
