"""The theory of the papers: bounds, their conditions, and the optima that follow from them.

Every formula takes its symbols by keyword, under the papers' names, as scalars or arrays that
broadcast together. Common symbols: `F1_minus_Fstar` = F(w̃_1) − F*; `L` Lipschitz constant of ∇F;
`M` (`sigma2` in mavg, lupa, adpsgd) variance of the gradient at one sample; `gamma` (`eta`) step
size; `P` learners (inf allowed); `B` mini-batch per learner; `K` local updates between averages;
`N` averages; `T` = N K local updates per learner (`S_total`: kavg's S). Bounds are of squared
gradient norms unless stated otherwise. A value that breaks its symbol's rule raises UserError.
"""

from localavg.theory.adpsgd import adpsgd_bound, adpsgd_weighted_variance
from localavg.theory.constants import Condition, Constants
from localavg.theory.hieravg import (
    hieravg_against_kavg,
    hieravg_bound_3_2,
    hieravg_bound_3_6,
    hieravg_conditions,
    hieravg_K2_above_1,
    hieravg_K2_opt,
    hieravg_step,
    hieravg_step_conditions,
)
from localavg.theory.kavg import (
    asgd_bound,
    kavg_bound,
    kavg_conditions,
    kavg_K_above_1,
    kavg_K_opt,
    kavg_N_conditions,
    kavg_P_end,
    kavg_step,
)
from localavg.theory.lupa import (
    adalupa_alpha,
    adalupa_bound,
    adalupa_conditions,
    lupa_bound,
    lupa_conditions,
    lupa_P_end,
    lupa_tau,
    stich_tau,
)
from localavg.theory.mavg import (
    mavg_bound,
    mavg_conditions,
    mavg_K_above_1,
    mavg_K_opt,
    mavg_mu_max,
    mavg_mu_opt,
)
from localavg.theory.prediction import predict
from localavg.theory.tables import (
    adalupa_table,
    against_table,
    hieravg_table,
    kavg_table,
    lupa_table,
    mavg_table,
)

__all__ = [
    "Condition",
    "Constants",
    "adalupa_alpha",
    "adalupa_bound",
    "adalupa_conditions",
    "adalupa_table",
    "adpsgd_bound",
    "adpsgd_weighted_variance",
    "against_table",
    "asgd_bound",
    "hieravg_K2_above_1",
    "hieravg_K2_opt",
    "hieravg_against_kavg",
    "hieravg_bound_3_2",
    "hieravg_bound_3_6",
    "hieravg_conditions",
    "hieravg_step",
    "hieravg_step_conditions",
    "hieravg_table",
    "kavg_K_above_1",
    "kavg_K_opt",
    "kavg_N_conditions",
    "kavg_P_end",
    "kavg_bound",
    "kavg_conditions",
    "kavg_step",
    "kavg_table",
    "lupa_P_end",
    "lupa_bound",
    "lupa_conditions",
    "lupa_table",
    "lupa_tau",
    "mavg_K_above_1",
    "mavg_K_opt",
    "mavg_bound",
    "mavg_conditions",
    "mavg_mu_max",
    "mavg_mu_opt",
    "mavg_table",
    "predict",
    "stich_tau",
]
