"""Predicate classification of pairs of found objects, as a transformers model.

Importing this package imports torch and transformers; `verbalizers` itself does not import it until it is used.
"""

from verbalizers.predcls.configuration_predcls import PredClsConfig
from verbalizers.predcls.measures_predcls import measure_pairs
from verbalizers.predcls.modeling_predcls import PredClsForSceneGraph

__all__ = ["PredClsConfig", "PredClsForSceneGraph", "measure_pairs"]
