"""The methods, a file each, found by name through their entry points; third parties' methods are found alike.

names()                        registered names, sorted
get("destein")                 the class
create("destein", alpha=0.3)   a configured method
working()                      every (name, class) that can be imported
"""

from detoxbench.registries import methods as _registry

names, get, create, working = _registry.names, _registry.get, _registry.create, _registry.working
