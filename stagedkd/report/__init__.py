"""Shows what the store keeps: a view over manifests and event files, never a stage.

`stagedkd.report` is both this folder and a function of the public API, and Python binds the folder to that name when
anything in it is imported. So the folder can be called, too: whichever of the two a caller gets, it is the function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagedkd.plan.graph import Plan
    from stagedkd.plan.runtime import Runtime
    from stagedkd.report.collect import Results


class _CallableFolder(ModuleType):
    def __call__(self, plan: Plan, runtime: Runtime | None = None) -> Results:
        from stagedkd.report.write import report

        return report(plan, runtime)


sys.modules[__name__].__class__ = _CallableFolder
