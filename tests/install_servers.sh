#!/usr/bin/env bash
# Installs what the slow tests want beyond PyPI wheels. Never fails: it says what is missing, and those tests skip.
set -u

packages=()
command -v redis-server >/dev/null || packages+=(redis-server)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || command -v postgres >/dev/null || packages+=(postgresql)
command -v java >/dev/null || packages+=(default-jre-headless)
command -v wrk >/dev/null || packages+=(wrk)  # the load of `make bench`
command -v cc >/dev/null || packages+=(gcc libc6-dev)  # the chaos suite's clock that jumps
command -v mvn >/dev/null || packages+=(maven)
command -v valgrind >/dev/null || packages+=(valgrind)  # counts what a query costs

if ((${#packages[@]})); then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing ${packages[*]} (apt-get)"
        export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # RUNLEVEL: the packages' services are not started
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends "${packages[@]}"; } >/dev/null ||
            echo "apt-get could not install: ${packages[*]}"
    else
        echo "Missing, and only root can install with apt-get: ${packages[*]}"
    fi
fi

kafka=4.1.1
folder=${XDG_CACHE_HOME:-$HOME/.cache}/ai-query-router/kafka-$kafka
if [ -f "$folder/.complete" ]; then
    exit 0
elif ! command -v mvn >/dev/null; then
    echo "Missing: Maven, which fetches Apache Kafka $kafka"
    exit 0
fi

echo "Fetching Apache Kafka $kafka with Maven into $folder"
mkdir -p "$folder"
cat >"$folder/pom.xml" <<POM
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>ai-query-router</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>$kafka</version>
    </dependency>
  </dependencies>
</project>
POM
if mvn -q -B -f "$folder/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$folder/libs"; then
    touch "$folder/.complete"
else
    echo "Maven could not fetch Apache Kafka $kafka"
fi
exit 0
