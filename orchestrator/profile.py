"""Which server the command line and a `Client()` talk to, and with which token. The only reader of environment and
files on the client's side; the server's are read by `settings`.

Address: --url, else CARREL_URL, else the profile, else the local server of this machine's settings. Token:
CARREL_TOKEN, else the profile's (for its own address only), else, for a server on this machine, the admin token in its
data directory. So no token ever goes to an address it was not meant for.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator import configuration
from orchestrator.errors import BadInput

ADMIN_TOKEN = "admin-token"


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how to introduce ourselves. `origin` says where the two come from, for people."""

    url: str
    token: str
    origin: str


def _folder(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return (Path(value) if value.startswith("/") else Path.home() / fallback) / "carrel"


def profiles_file() -> Path:
    """TOML, 0600: [profiles.<name>] url, token; `default` names the one in use."""
    return _folder("XDG_CONFIG_HOME", ".config") / "profiles.toml"


def _last_file() -> Path:
    return _folder("XDG_STATE_HOME", ".local/state") / "last.json"


def load_profiles() -> tuple[str, dict[str, dict[str, str]]]:
    """(the default's name, all profiles). Raises BadInput for a file that is not ours, or that others may read."""
    path = profiles_file()
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = tomllib.load(file)
    except FileNotFoundError:
        return "", {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise BadInput(f"{path}: {wrong}", field="profile", remedy="correct or remove the file") from None
    if mode & 0o077:
        raise BadInput(
            f"{path} holds tokens and others may read it (mode {mode:04o})",
            field="profile",
            limit="mode 0600",
            remedy=f"chmod 600 {path}",
        )
    found = content.get("profiles", {})
    profiles = {
        str(name): {str(key): str(value) for key, value in one.items()}
        for name, one in (found.items() if isinstance(found, dict) else ())
        if isinstance(one, dict)
    }
    return str(content.get("default", "")), profiles


def save_profile(name: str, url: str, token: str) -> Path:
    """Add or replace one and make it the default; whole or not at all, 0600 from its first byte."""
    _, profiles = load_profiles()
    profiles[name] = {"url": url, "token": token}
    # JSON strings without \u2028-like surprises are TOML basic strings.
    text = f"default = {json.dumps(name)}\n"
    for each, one in sorted(profiles.items()):
        text += f"\n[profiles.{json.dumps(each)}]\n"
        text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in one.items())
    path = profiles_file()
    _replace(path, text)
    return path


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def target(url: str | None, profile: str | None) -> Target:
    """Whom to talk to. Raises BadInput for a profile that is not there, a broken file, a token that cannot be read."""
    environment: Mapping[str, str] = os.environ
    token = environment.get("CARREL_TOKEN", "")
    url = url or environment.get("CARREL_URL", "")
    name = profile or environment.get("CARREL_PROFILE", "")
    origin = "--url or CARREL_URL"
    default, profiles = ("", {}) if url and not name else load_profiles()
    name = name or default
    if name and name not in profiles:
        raise BadInput(
            f"there is no profile {name!r}",
            field="profile",
            limit=" | ".join(profiles) or "none is kept yet",
            remedy="make one with `carrel login`",
        )
    if name and not url:
        url, origin = profiles[name].get("url", ""), f"profile {name}"
    if name and url == profiles[name].get("url"):
        token = token or profiles[name].get("token", "")
    if url:
        if not token and is_local(url):
            token = _admin_token(quiet=True)
        return Target(url, token, origin)
    return Target(local_url(), token or _admin_token(quiet=False), "the local server")


def is_local(url: str) -> bool:
    """True for a unix socket and for loopback addresses: what listens there is on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "http+unix" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def local_url() -> str:
    """Where this machine's server listens, by its settings."""
    effective = configuration.load()
    host = effective.bind_host
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{effective.port}" if ":" in host else f"http://{host}:{effective.port}"


def _admin_token(*, quiet: bool) -> str:
    path = configuration.load().data_dir / ADMIN_TOKEN
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""  # the server has never run here; it will say so, or not answer
    except PermissionError:
        if quiet:
            return ""
        raise BadInput(
            f"{path} is not yours to read",
            field="token",
            limit="the user that runs the server, or root",
            remedy="ask for a token and keep it with `carrel login`, or set CARREL_TOKEN",
        ) from None


# -- @last -----------------------------------------------------------------------------------------------------------


def remember(url: str, execution_id: str) -> None:
    """The execution @last means from now on, for this server. Not to be able to is no reason to fail."""
    try:
        known = _known()
        known[url] = execution_id
        _replace(_last_file(), json.dumps(known))
    except OSError:
        pass


def last(url: str) -> str:
    """What @last means. Raises BadInput when nothing was run from here."""
    found = _known().get(url)
    if not found:
        raise BadInput(
            "@last: nothing was run from here yet",
            field="execution",
            limit="an id, a unique prefix of one, or a name",
            remedy="`carrel ps -a` lists what is there",
        )
    return found


def _known() -> dict[str, str]:
    try:
        content = json.loads(_last_file().read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}
