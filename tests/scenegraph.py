"""What Vega draws of an explorer."""

import vl_convert


def marks(explorer, panel, **setting):
    """Return what Vega draws in a panel at a setting: for each mark type, its items."""
    explorer.setting.update(setting)
    drawn, found = vl_convert.vegalite_to_scenegraph(explorer.filled(width=360)[panel]), {}

    def walk(node):
        if isinstance(node, dict):
            if node.get("role") == "mark" and node["marktype"] != "group":
                found.setdefault(node["marktype"], []).extend(node["items"])
            node = list(node.values())
        if isinstance(node, list):
            for each in node:
                walk(each)

    walk(drawn)
    return found
