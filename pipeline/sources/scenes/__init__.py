"""The embedded world: small composed scenes with known truth, served over loopback HTTP.

`rows` yields the source rows, `SceneServer` serves their URLs; `ScenesConfig` says how many, how
badly captioned and how badly served.
"""

from pipeline.sources.scenes.config import CaptionShares, ScenesConfig, UrlFaultShares
from pipeline.sources.scenes.rows import SCHEMA, rows
from pipeline.sources.scenes.server import SceneServer

__all__ = ["SCHEMA", "CaptionShares", "SceneServer", "ScenesConfig", "UrlFaultShares", "rows"]
