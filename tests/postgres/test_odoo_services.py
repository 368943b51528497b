"""Reports, imports and queue jobs have no mark on the wire: a real nginx with the shipped snippets sends them to Odoo services with names of
their own, whose links are in lanes of their own."""

import contextlib
import http.client
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import pytest

from harness import docs, eventually, free_port, odoo_actors as odoo
from harness.odoo_actors import BEGIN, COMMIT, Process, shipped
from harness.weir import ROOT

pytestmark = pytest.mark.weir

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
# A service's HTTP worker, or gevent process: title, and the name of its links.
SERVICES = {"web": ("odoo: WorkerHTTP 100", "odoo-1"), "live": (["python3", "odoo-bin", "gevent"], "odoo-2"),
            "reports": ("odoo: WorkerHTTP 300", "odoo-reports-3"), "imports": ("odoo: WorkerHTTP 400", "odoo-imports-4"),
            "queue": ("odoo: WorkerHTTP 500", "odoo-queue-5")}


@pytest.fixture(scope="module")
def weir(cluster, make_module_weir):
    """pgweir with the configuration for one host."""
    odoo.tables(cluster)
    return shipped(make_module_weir, "odoo.toml")


@pytest.fixture(scope="module")
def services(weir):
    """Odoo's services; their HTTP ports by name."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, (title, application) in SERVICES.items():
            process = stack.enter_context(contextlib.closing(Process(weir, title, application, unix=True)))
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(name, process))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            ports[name] = server.server_address[1]
        yield ports


def handler(service, process):
    """Answers each request with the lane of the link that it took."""
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with lock:
                answer = process.attempt("request")
                lane = None
                if answer["error"] is None:
                    process.run("request", BEGIN, *odoo.PAGE)
                    lane = eventually(lambda: process.lane("request"))
                    process.run("request", COMMIT)
                process.hang_up("request")
            body = json.dumps({"service": service, "lane": lane, "refused": answer["error"], "upgrade": self.headers.get("Upgrade"),
                               "forwarded": self.headers.get("X-Forwarded-Host")}).encode()
            self.send_response(200 if lane else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass
    return Handler


@pytest.fixture(scope="module")
def site(services, tmp_path_factory):
    """nginx with the shipped files, installed as docs/odoo.md says, their ports replaced; its address."""
    place, port = tmp_path_factory.mktemp("nginx"), free_port()
    (line,) = docs.commands("docs/odoo.md", "install -m 644 deploy/nginx/*")
    subprocess.run(["bash", "-c", line.replace("/etc/nginx/", f"{place}/")], cwd=ROOT, check=True, timeout=60)
    upstreams = (place / "odoo-upstreams.conf").read_text()
    for name, number in services.items():
        upstreams, count = re.subn(rf"(upstream odoo_{name} +{{ server 127\.0\.0\.1:)\d+", rf"\g<1>{number}", upstreams)
        assert count == 1, name
    (place / "odoo-upstreams.conf").write_text(upstreams)
    temporary = "".join(f"{kind}_temp_path {place}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf = place / "nginx.conf"
    conf.write_text(f"daemon off; pid {place}/pid; error_log stderr notice; events {{}}\n"
                    f"http {{ access_log off; {temporary} include {place}/odoo-upstreams.conf;\n"
                    f"server {{ listen 127.0.0.1:{port}; include {place}/odoo-locations.conf; }} }}\n")
    tested = subprocess.run([NGINX, "-t", "-p", str(place), "-c", str(conf)], capture_output=True, text=True, timeout=60)
    assert tested.returncode == 0 and "warn" not in tested.stderr, tested.stderr
    with open(place / "log", "wb") as log:
        process = subprocess.Popen([NGINX, "-p", str(place), "-c", str(conf)], stdout=log, stderr=log)
    try:
        eventually(lambda: process.poll() is None and get(f"http://127.0.0.1:{port}", "/web/login")[0] == 200, what=f"nginx: {(place / 'log')}")
        # The page's way to apply the files, with this nginx for that of the host.
        (apply,) = docs.commands("docs/odoo.md", "nginx *")
        here = f'nginx() {{ {NGINX} -p {place} -c {conf} "$@"; }}; {apply}'
        applied = subprocess.run(["bash", "-c", here], capture_output=True, text=True, timeout=60)
        assert applied.returncode == 0, applied.stderr
        eventually(lambda: "reconfiguring" in (place / "log").read_text(), what="nginx reads its files again")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def get(site, path, **headers):
    """Status and answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(site + path, headers=headers), timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text
    except OSError:
        return 0, None


@pytest.mark.parametrize("path, lane", [
    ("/web/login", "web"), ("/web/dataset/call_kw/res.partner/web_search_read", "web"), ("/reporting", "web"),
    ("/websocket?version=17.0-3", "live"), ("/longpolling/poll", "live"),
    ("/report/pdf/sale.report_saleorder/7", "reports"), ("/report/download?data=x", "reports"), ("/web/export/xlsx", "reports"),
    ("/base_import/set_file", "imports"), ("/web/dataset/call_kw/base_import.import/execute_import", "imports"),
    ("/queue_job/runjob?db=odoo&job_uuid=1", "queue"),
])
def test_a_request_is_in_the_lane_of_its_path(site, path, lane):
    status, answer = get(site, path)
    assert status == 200 and (answer["service"], answer["lane"]) == (lane, lane), answer
    assert answer["forwarded"] == "127.0.0.1"


def test_websockets_pass_and_strangers_run_no_jobs(site):
    assert get(site, "/websocket", Upgrade="websocket", Connection="Upgrade")[1]["upgrade"] == "websocket"
    assert get(site, "/web/login")[1]["upgrade"] is None
    port = int(site.rpartition(":")[2])
    stranger = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=("127.0.0.2", 0))
    stranger.request("GET", "/queue_job/runjob?db=odoo&job_uuid=1")
    assert stranger.getresponse().status == 403
    stranger.close()


def test_a_freeze_stops_reports_and_no_page(site, weir):
    weir.admin("FREEZE REASON 'too many clients'")
    try:
        status, answer = get(site, "/report/pdf/sale.report_saleorder/7")
        assert status == 500 and answer["refused"]["C"] == "57P03", answer
        assert get(site, "/web/login")[0] == 200 and get(site, "/websocket")[0] == 200
    finally:
        weir.admin("RESUME ALL")
    assert get(site, "/report/pdf/sale.report_saleorder/7")[0] == 200


def test_the_services_units_have_names_that_lead_to_lanes():
    unit = (ROOT / "deploy" / "odoo" / "odoo-lane@.service").read_text()
    (name,) = re.findall(r"^Environment=ODOO_PGAPPNAME=(\S+)$", unit, re.M)
    assert name == "odoo-%i-{pid}"
    lanes = {path.stem.removeprefix("lane-") for path in pathlib.Path(ROOT / "deploy" / "odoo").glob("lane-*.env")}
    assert lanes == {"reports", "imports", "queue", "cron"}
