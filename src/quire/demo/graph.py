"""The import graph: who needs whom, in circles, in chains, and how much comes along.

A graph is {module: modules it imports}; names that are not keys have no source (built-ins, C extensions) and are leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

Graph = Mapping[str, Collection[str]]


def resolve(name: str, known: Collection[str], builtin: Collection[str]) -> str | None:
    """Return the module that a dotted name is in: the longest part that is known, else a built-in, else None.

    >>> resolve("os.path.join", {"os", "os.path"}, {"sys"}), resolve("sys.argv", {"os"}, {"sys"})
    ('os.path', 'sys')
    """
    part = name
    while part:
        if part in known:
            return part
        part = part.rpartition(".")[0]
    top = name.partition(".")[0]
    return top if top in builtin else None


def users(graph: Graph) -> Counter[str]:
    """Return for each module how many others import it."""
    return Counter(target for module, targets in graph.items() for target in targets if target != module)


def cycles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other in circles, largest first, names sorted.

    Source: R. Tarjan, Depth-first search and linear graph algorithms, 1972; without recursion. Cost: O(edges).

    >>> cycles({"a": ["b"], "b": ["a", "c"], "c": []})
    [['a', 'b']]
    """
    found = [sorted(group) for group in _components(graph) if len(group) > 1]
    return sorted(found, key=lambda group: (-len(group), group))


def _components(graph: Graph) -> Iterator[list[str]]:
    """Yield the strongly connected components; one that others lead to comes before them."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    waiting: list[str] = []
    inside: set[str] = set()
    for root in graph:
        if root in index:
            continue
        path = [(root, iter(_targets(graph, root)))]
        index[root] = low[root] = len(index)
        waiting.append(root)
        inside.add(root)
        while path:
            module, targets = path[-1]
            following = next(targets, None)
            if following is None:
                path.pop()
                if path:
                    above = path[-1][0]
                    low[above] = min(low[above], low[module])
                if low[module] == index[module]:
                    at = waiting.index(module)
                    group = waiting[at:]
                    del waiting[at:]
                    inside.difference_update(group)
                    yield group
            elif following not in index:
                index[following] = low[following] = len(index)
                waiting.append(following)
                inside.add(following)
                path.append((following, iter(_targets(graph, following))))
            elif following in inside:
                low[module] = min(low[module], index[following])


def _targets(graph: Graph, module: str) -> list[str]:
    return sorted(t for t in graph.get(module, ()) if t != module)


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest way down: each imports the next; of a circle of modules one stands for all.

    >>> longest_chain({"a": ["b", "c"], "b": ["c"], "c": ["sys"]})
    ['a', 'b', 'c', 'sys']
    """
    group_of: dict[str, int] = {}
    best: dict[int, list[str]] = {}
    longest: list[str] = []
    for number, group in enumerate(_components(graph)):
        group_of |= dict.fromkeys(group, number)
        below: list[str] = []
        for module in sorted(group):  # the groups below came earlier, so their chains are known
            for target in _targets(graph, module):
                chain = best.get(group_of.get(target, -1), [])
                if group_of.get(target) != number and len(chain) + 1 > len(below):
                    below = [module, *chain]
        best[number] = below or [min(group)]
        longest = max(longest, best[number], key=len)
    return longest


def reach(graph: Graph, module: str) -> int:
    """Return how many other modules come along when one is imported."""
    seen = {module}
    todo = [module]
    while todo:
        new = set(graph.get(todo.pop(), ())) - seen
        seen |= new
        todo += new
    return len(seen) - 1
