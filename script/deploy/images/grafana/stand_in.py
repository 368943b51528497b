"""NOT Grafana: Debian has none. It reads what Grafana would be given (provisioned data source and dashboards, the password's file)
from the places where Grafana reads it, and answers a few of its paths, so that docker-compose.yml's wiring can be tried: is every
file there and readable by Grafana's user, does the data source's address answer, does each panel's query mean something to it."""

import base64
import hmac
import http.server
import json
import os
import pathlib
import urllib.parse
import urllib.request

import yaml

PROVISIONING = pathlib.Path("/etc/grafana/provisioning")


def provisioned(kind, key):
    """The entries under `key` of every file of that kind."""
    for file in sorted((PROVISIONING / kind).glob("*.yml")):
        yield from yaml.safe_load(file.read_text())[key]


def dashboards():
    """uid → dashboard."""
    folders = [pathlib.Path(provider["options"]["path"]) for provider in provisioned("dashboards", "providers")]
    found = [json.loads(file.read_text()) for folder in folders for file in sorted(folder.glob("*.json"))]
    return {dashboard["uid"]: dashboard for dashboard in found}


class Handler(http.server.BaseHTTPRequestHandler):
    """The paths script/try-compose asks for."""

    def do_GET(self):  # noqa: N802 - the base class's name
        """One answer."""
        path = urllib.parse.urlsplit(self.path).path
        if path == "/api/health":
            return self.reply(200, {"stand-in": True, "database": "ok"})
        if not self.admitted():
            return self.reply(401, {"message": "password"})
        if path == "/api/datasources":
            return self.reply(200, list(provisioned("datasources", "datasources")))
        if path.startswith("/api/dashboards/uid/"):
            dashboard = dashboards().get(path.rpartition("/")[2])
            return self.reply(200, {"dashboard": dashboard}) if dashboard else self.reply(404, {})
        proxied = "/api/datasources/proxy/uid/"
        if path.startswith(proxied):
            uid, _, rest = self.path.removeprefix(proxied).partition("/")
            return self.proxy(uid, rest)
        return self.reply(404, {})

    def admitted(self):
        """Whether the password of GF_SECURITY_ADMIN_PASSWORD__FILE was given."""
        password = pathlib.Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text().strip()
        wanted = "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()
        return hmac.compare_digest(self.headers.get("Authorization", ""), wanted)

    def proxy(self, uid, rest):
        """Asks the data source of that uid."""
        source = next((s for s in provisioned("datasources", "datasources") if s["uid"] == uid), None)
        if source is None:
            return self.reply(404, {})
        try:
            with urllib.request.urlopen(f"{source['url']}/{rest}", timeout=10) as answer:
                return self.reply(answer.status, json.load(answer))
        except urllib.error.HTTPError as error:
            return self.reply(error.code, {"error": error.read().decode(errors="replace")[:2000]})
        except OSError as error:
            return self.reply(502, {"error": str(error)})

    def reply(self, status, body):
        """JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    # As Grafana does, it ends where it cannot write to its own directory, or read what it was given.
    pathlib.Path("/var/lib/grafana/stand-in").write_text("not Grafana\n")
    print(f"NOT Grafana, a stand-in: {sorted(dashboards())} from {[s['url'] for s in provisioned('datasources', 'datasources')]}", flush=True)
    http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
