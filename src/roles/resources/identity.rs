//! Projects, roles, users, services and endpoints in keystone.
//!
//! One resource holds them all: they are observed with one login and a handful of list calls. The
//! node-side part is a small program on the Python that keystone itself needs; the `openstack`
//! client would cost 7 to 25 s a call under emulation.

use crate::engine::resource::{Input, Resource, Script, Verdict};
use crate::secret::Secret;
use serde_json::json;

#[derive(Clone, Debug)]
pub struct User {
    pub name: String,
    pub password: Secret,
    /// Roles on projects, all in the default domain: `(project, role)`.
    pub grants: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
pub struct Service {
    pub name: &'static str,
    pub kind: &'static str,
    pub endpoint: Endpoint,
}

/// The same URL serves the public, internal and admin interface.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub url: String,
}

#[derive(Clone, Debug)]
pub struct Identity {
    /// `http://ADDRESS:5000`, without `/v3`.
    pub url: String,
    pub region: String,
    pub admin: Secret,
    pub projects: Vec<String>,
    pub users: Vec<User>,
    pub services: Vec<Service>,
}

const PROGRAM: &str = include_str!("identity.py");

impl Identity {
    fn inputs(&self) -> Vec<(String, Input)> {
        let wanted = json!({
            "url": self.url,
            "region": self.region,
            "admin": self.admin.reveal(),
            "projects": self.projects,
            "users": self.users.iter().map(|u| json!({
                "name": u.name, "password": u.password.reveal(), "grants": u.grants,
            })).collect::<Vec<_>>(),
            "services": self.services.iter().map(|s| json!({
                "name": s.name, "type": s.kind, "url": s.endpoint.url,
            })).collect::<Vec<_>>(),
        });
        vec![
            ("identity.py".into(), Input::Plain(PROGRAM.into())),
            ("wanted".into(), Input::SecretBytes(wanted.to_string().into_bytes())),
        ]
    }
}

impl Resource for Identity {
    fn id(&self) -> String {
        "keystone projects, users, services and endpoints".into()
    }

    fn probe(&self) -> Script {
        Script {
            shell: "python3 -I -S \"$IN/identity.py\" observe \"$IN/wanted\" 2>&1 || true\n".into(),
            inputs: self.inputs(),
        }
    }

    /// The program prints one line a difference and `observed` when it saw everything.
    fn judge(&self, seen: &str) -> Verdict {
        let mut lines: Vec<String> = seen.lines().map(str::to_owned).collect();
        match lines.pop().as_deref() {
            Some("observed") if lines.is_empty() => Verdict::Same,
            Some("observed") => Verdict::Differs(lines),
            last => Verdict::Differs(vec![format!(
                "keystone: could not be asked: {}",
                last.unwrap_or("no answer")
            )]),
        }
    }

    fn apply(&self, _seen: &str) -> Script {
        Script {
            shell: "python3 -I -S \"$IN/identity.py\" apply \"$IN/wanted\"\n".into(),
            inputs: self.inputs(),
        }
    }

    fn patience(&self) -> u64 {
        60
    }
}
