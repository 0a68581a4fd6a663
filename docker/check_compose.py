"""Checks compose.yaml and what it refers to, without a Docker engine.

Not a validator of the Compose schema, but of the mistakes that a schema cannot see: a service, volume or file that
is not there, an image that moves, a port open to the network, a wait for a health check that nobody wrote, a variable
that .env.example does not name, a host in tidewater.yaml that no service answers to.
"""

import pathlib
import re
import sys

import yaml

HERE = pathlib.Path(__file__).parent
SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "init", "ports",
    "profiles", "read_only", "restart", "security_opt", "stdin_open", "stop_grace_period", "tmpfs", "tty", "volumes",
}  # fmt: skip
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not the last one."""


def _mapping(loader, node, deep=False):
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
    return loader.construct_mapping(node, deep)


UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load(name):
    return yaml.load((HERE / name).read_text(encoding="utf-8"), UniqueKeys)


def variables(name):
    return set(re.findall(r"\$\{([A-Z_]+)", (HERE / name).read_text(encoding="utf-8")))


def service_findings(name, service, compose):
    services, volumes = compose["services"], compose.get("volumes", {})
    for key in service.keys() - SERVICE_KEYS:
        yield f"{name}: the key {key!r} is not one that this check knows; add it there if it is right"
    if "build" in service:
        context = (HERE / service["build"]["context"]).resolve()
        if not (context / service["build"]["dockerfile"]).is_file():
            yield f"{name}: no file {service['build']['dockerfile']} in the build context"
    elif not re.search(r":[0-9][\w.-]*(@sha256:[0-9a-f]{64})?$", service.get("image", "")):
        yield f"{name}: the image {service.get('image')!r} is not pinned to a version"
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"{name}: port {port} is open to the network; publish it on 127.0.0.1"
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith((".", "/")):
            if not (HERE / source).exists():
                yield f"{name}: mounts {source}, which is not there"
        elif source not in volumes:
            yield f"{name}: mounts the volume {source}, which is not declared"
    for other, wait in service.get("depends_on", {}).items():
        condition = wait.get("condition")
        if other not in services:
            yield f"{name}: depends on {other}, which is no service"
        elif condition not in CONDITIONS:
            yield f"{name}: waits for {other} to be {condition!r}, which is no condition"
        elif condition == "service_healthy" and not {"healthcheck", "build"} & services[other].keys():
            yield f"{name}: waits for {other} to be healthy, which has no health check"


def findings():
    compose, configuration = load("compose.yaml"), load("tidewater.yaml")
    services = compose["services"]
    for name, service in services.items():
        yield from service_findings(name, service, compose)
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    for volume in compose.get("volumes", {}).keys() - used:
        yield f"the volume {volume} is declared and never mounted"

    example = {line.split("=")[0] for line in (HERE / ".env.example").read_text().splitlines() if "=" in line}
    for name in sorted(variables("compose.yaml") ^ (example)):
        yield f"${{{name}}} is in only one of compose.yaml and .env.example"
    given = set(services["tidewater"]["environment"])
    for name in sorted(variables("tidewater.yaml") ^ given):
        yield f"${{{name}}} is in only one of tidewater.yaml and its service's environment"

    addresses = [database["url"] for database in configuration["databases"].values() if "url" in database]
    addresses.append(configuration["lake"]["options"]["endpoint"])
    for address in addresses:
        host = re.match(r"\w+://(?:[^@/]*@)?([^:/]+)", address).group(1)
        if host not in services:
            yield f"tidewater.yaml names the host {host}, which is no service"
    databases = configuration["databases"].keys()
    for route in configuration["to_lake"]:
        if route["database"] not in databases:
            yield f"to_lake names the database {route['database']}, which is not configured"


def main():
    found = list(findings())
    for finding in found:
        print(f"docker/compose.yaml: {finding}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
