#!/bin/sh
# A room on one server: The Littlest JupyterHub, this book and its results. Run it as root on a new Ubuntu LTS:
#
#     sudo sh tljh.sh NAME
#
# NAME is the teacher's account. Whoever opens the server's address then picks a name and a password.
set -eu
[ "$#" = 1 ] || { echo "usage: sudo sh tljh.sh NAME, the teacher's account"; exit 2; }
[ "$(id -u)" = 0 ] || { echo "not as root: sudo sh tljh.sh $1"; exit 2; }

curl -fsSL https://tljh.jupyter.org/bootstrap.py | python3 - --admin "$1"
export PATH=/opt/tljh/user/bin:/opt/tljh/hub/bin:$PATH

git clone --depth 1 https://github.com/dlopt-book/dlopt /srv/dlopt
cd /srv/dlopt
sh postBuild /opt/tljh/user/bin/python

# Train once, on all cores, so that thirty kernels need not.
export DLOPT_CACHE=/srv/results DLOPT_JOBS="$(nproc)" OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
for chapter in chapters/*.ipynb; do
  jupyter nbconvert --to notebook --execute --stdout "$chapter" >/dev/null
done
chmod -R a+rX /srv/dlopt /srv/results

# What lies in /etc/skel, each new account finds at home: the chapters, and folders of its own in which each
# result is a link. Links to files, not to the folder: what a learner trains goes into the learner's folder.
cp -r chapters /etc/skel/dlopt
mkdir -p /etc/skel/.cache
cp -rs /srv/results /etc/skel/.cache/dlopt

cat >/opt/tljh/config/jupyterhub_config.d/dlopt.py <<'END'
c.Authenticator.allow_all = True
c.FirstUseAuthenticator.create_users = True
c.Spawner.environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DLOPT_JOBS": "1"}
c.Spawner.default_url = "/lab/tree/dlopt"
END
tljh-config set limits.memory 2G
tljh-config set limits.cpu 2
tljh-config set services.cull.timeout 3600
tljh-config reload
echo "Ready. Open the server's address and log in as $1."
