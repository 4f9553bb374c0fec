"""The hub that benchmarks/hub.py starts: local processes, a folder for each learner, on loopback only.

No room for people: anyone who reaches it is let in. What it shares with a real one is the environment of the
learners' servers, and the links to results that were computed beforehand.
"""

import os
import subprocess
import sys
from pathlib import Path

c = get_config()  # noqa: F821
homes = Path.cwd() / "homes"


def link_results(spawner):
    """Give a learner the results: folders of their own, in which each file is a link."""
    cache = homes / spawner.user.name / ".cache" / "dlopt"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-rs", os.environ["DLOPT_RESULTS"], cache], check=True)


c.JupyterHub.bind_url = f"http://127.0.0.1:{os.environ['HUB_PORT']}"
c.JupyterHub.hub_port = int(os.environ["HUB_PORT"]) + 1
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{int(os.environ['HUB_PORT']) + 2}"
c.ConfigurableHTTPProxy.command = [os.environ["HUB_PROXY"]]

c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "teacher", "api_token": os.environ["HUB_TOKEN"]}]
scopes = ["admin:users", "admin:servers", "access:servers"]
c.JupyterHub.load_roles = [{"name": "teacher", "scopes": scopes, "services": ["teacher"]}]

c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = str(homes / "{username}")
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.args = ["--allow-root"] if os.geteuid() == 0 else []  # containers
c.Spawner.pre_spawn_hook = link_results
c.Spawner.default_url = "/lab"
# As in the other recipes: one thread and one process a kernel, for the room has more kernels than cores.
c.Spawner.environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DLOPT_JOBS": "1"}
c.Spawner.start_timeout = c.Spawner.http_timeout = 600  # ten at once on two cores
c.JupyterHub.concurrent_spawn_limit = 0
