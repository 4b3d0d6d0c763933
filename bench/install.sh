#!/usr/bin/env bash
# Installs what the comparison wants beyond PyPI: wrk, Redis, and Node for one rival. Never fails: it says what is missing.
set -u

packages=()
command -v wrk >/dev/null || packages+=(wrk)
command -v redis-server >/dev/null || packages+=(redis-server)
command -v npm >/dev/null || packages+=(nodejs npm)

if ((${#packages[@]})); then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing ${packages[*]} (apt-get)" >&2
        export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # RUNLEVEL: the packages' services are not started
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${packages[@]}"; } >/dev/null ||
            echo "apt-get could not install: ${packages[*]}" >&2
    else
        echo "Missing, and only root can install with apt-get: ${packages[*]}" >&2
    fi
fi
exit 0
