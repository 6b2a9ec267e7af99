# Observes or makes what keystone should know. Standard library only: run as `python3 -I -S`.
# Usage: identity.py observe|apply FILE   (FILE holds the wanted state as JSON; see identity.rs)
import json, sys, urllib.request, urllib.error

mode, path = sys.argv[1:3]
with open(path) as f:
    want = json.load(f)
v3 = want["url"] + "/v3"
token = None


def call(method, where, body=None):
    request = urllib.request.Request(v3 + where, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("X-Auth-Token", token)
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, data, timeout=120) as answer:
        text = answer.read()
        return answer, json.loads(text) if text else None


def login(user, password, project=None):
    auth = {"identity": {"methods": ["password"], "password": {"user": {
        "name": user, "domain": {"id": "default"}, "password": password}}}}
    if project:
        auth["scope"] = {"project": {"name": project, "domain": {"id": "default"}}}
    else:
        auth["scope"] = "unscoped"
    answer, body = call("POST", "/auth/tokens", {"auth": auth})
    return answer.headers["X-Subject-Token"]


def password_works(user, password):
    global token
    admin, token = token, None
    try:
        login(user, password)
        return True
    except urllib.error.HTTPError as e:
        if e.code == 401:
            return False
        raise
    finally:
        token = admin


def names(kind, query=""):
    _, body = call("GET", "/" + kind + query)
    return {entry["name"]: entry for entry in body[kind] if "name" in entry}


def differs(text):
    if mode == "observe":
        print(text)
    return mode == "apply"


def main():
    global token
    token = login("admin", want["admin"], "admin")
    projects = names("projects", "?domain_id=default")
    for project in want["projects"]:
        if project not in projects and differs("project %s: absent" % project):
            _, body = call("POST", "/projects", {"project": {"name": project, "domain_id": "default"}})
            projects[project] = body["project"]

    roles = names("roles")
    for role in sorted({role for user in want["users"] for _, role in user["grants"]}):
        if role not in roles and differs("role %s: absent" % role):
            _, body = call("POST", "/roles", {"role": {"name": role}})
            roles[role] = body["role"]

    users = names("users", "?domain_id=default")
    _, body = call("GET", "/role_assignments")
    granted = {(a["user"]["id"], a["scope"]["project"]["id"], a["role"]["id"])
               for a in body["role_assignments"] if "user" in a and "project" in a["scope"]}
    for user in want["users"]:
        name = user["name"]
        if name not in users:
            if differs("user %s: absent" % name):
                _, body = call("POST", "/users", {"user": {
                    "name": name, "domain_id": "default", "password": user["password"]}})
                users[name] = body["user"]
        elif not password_works(name, user["password"]):
            if differs("user %s: password differs" % name):
                call("PATCH", "/users/" + users[name]["id"], {"user": {"password": user["password"]}})
        for project, role in user["grants"]:
            ids = [d.get(k, {}).get("id") for d, k in ((users, name), (projects, project), (roles, role))]
            if tuple(ids) not in granted and differs("user %s: not %s in %s" % (name, role, project)):
                call("PUT", "/projects/%s/users/%s/roles/%s" % (ids[1], ids[0], ids[2]))

    services = names("services")
    _, body = call("GET", "/endpoints")
    endpoints = {(e["service_id"], e["interface"]): e for e in body["endpoints"] if e["region_id"] == want["region"]}
    for service in want["services"]:
        name, kind = service["name"], service["type"]
        known = services.get(name)
        if known is None or known["type"] != kind:
            if differs("service %s (%s): absent" % (name, kind)):
                _, body = call("POST", "/services", {"service": {"name": name, "type": kind}})
                known = services[name] = body["service"]
        for interface in ("public", "internal", "admin"):
            have = endpoints.get((known["id"], interface)) if known else None
            if have is None:
                if differs("endpoint %s %s: absent" % (name, interface)):
                    call("POST", "/endpoints", {"endpoint": {
                        "service_id": known["id"], "interface": interface,
                        "region_id": want["region"], "url": service["url"]}})
            elif have["url"].rstrip("/") != service["url"].rstrip("/"):
                if differs("endpoint %s %s: %s -> %s" % (name, interface, have["url"], service["url"])):
                    call("PATCH", "/endpoints/" + have["id"], {"endpoint": {"url": service["url"]}})


try:
    main()
except urllib.error.HTTPError as e:
    # The body names the cause; the request, which may hold a password, is not repeated.
    sys.exit("keystone: %s %s: %s" % (e.code, e.url, e.read().decode(errors="replace")[:500]))
except (urllib.error.URLError, OSError) as e:
    sys.exit("keystone at %s does not answer: %s" % (want["url"], e))
if mode == "observe":
    print("observed")
