"""What a ViT spends its compute on: policies, one file each, and the grammar that reads them."""

from bvit.tokens.cluster import Cluster
from bvit.tokens.drop import Drop
from bvit.tokens.grammar import POLICIES, parse
from bvit.tokens.keep import Keep
from bvit.tokens.merge import Merge
from bvit.tokens.plan import Plan
from bvit.tokens.policy import Attention, Policy, Tokens, ViTShape, mean_tokens, operations
from bvit.tokens.pool import Pool
from bvit.tokens.random import Random
from bvit.tokens.tome import Tome
from bvit.tokens.zero import Zero

__all__ = [
    "POLICIES",
    "Attention",
    "Cluster",
    "Drop",
    "Keep",
    "Merge",
    "Plan",
    "Policy",
    "Pool",
    "Random",
    "Tokens",
    "Tome",
    "ViTShape",
    "Zero",
    "mean_tokens",
    "operations",
    "parse",
]
