"""Who owns which KV block. Start with `manager.KVCacheManager`; `storage` holds the tensors."""

from kvcache.config import KVCacheConfig, LayerGroup, group_layers
from kvcache.manager import NULL_BLOCK, Growth, KVCacheManager, PrefixStats, TableUpdate

__all__ = [
    "NULL_BLOCK",
    "Growth",
    "KVCacheConfig",
    "KVCacheManager",
    "LayerGroup",
    "PrefixStats",
    "TableUpdate",
    "group_layers",
]
