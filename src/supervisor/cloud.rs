//! The cloud on a lab, as those who use it need to know it. Goes with checkpoints as their note.

use crate::cloud::awake::Sleeper;
use crate::cloud::rc;
use crate::cloud::session::Credentials;
use crate::cloud::url::Url;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::secret::{Redactor, Secret};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// Passwords travel in it over the lab's private socket and in its checkpoints (0600).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Cloud {
    /// As nodes reach it: `http://openstack1:5000/v3`.
    pub auth_url: String,
    pub region: String,
    /// The first is whom the RC file is for.
    pub users: Vec<User>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub password: String,
    pub project: String,
    pub domain: String,
}

impl std::fmt::Debug for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cloud").field("auth_url", &self.auth_url).finish_non_exhaustive()
    }
}

impl User {
    pub fn of(who: &Credentials) -> User {
        User {
            name: who.user.clone(),
            password: who.password.reveal().to_owned(),
            project: who.project.clone(),
            domain: who.domain.clone(),
        }
    }

    fn credentials(&self) -> Credentials {
        Credentials {
            user: self.name.clone(),
            password: Secret::new(self.password.as_str()),
            project: self.project.clone(),
            domain: self.domain.clone(),
        }
    }
}

impl Cloud {
    /// The `cloud` of a checkpoint's notes.
    pub fn of_notes(notes: &Value) -> Option<Cloud> {
        serde_json::from_value(notes.get("cloud")?.clone()).ok()
    }
    pub fn notes(cloud: Option<&Cloud>) -> Value {
        json!({ "cloud": cloud })
    }

    pub fn hide_in(&self, redactor: &Redactor) {
        self.users.iter().for_each(|u| redactor.add(&Secret::new(u.password.as_str())));
    }

    /// The way to it where it runs on `lab`, which has just been restored.
    pub fn asleep(&self, lab: &Lab) -> Result<Sleeper> {
        let first = self.users.first().ok_or_else(|| Error::internal("a cloud without a user"))?;
        let host = Url::parse(&self.auth_url)?.host;
        let controller = lab.node(&host).ok_or_else(|| {
            Error::lab(format!("the cloud's address is {}, and no node is {host}", self.auth_url))
        })?;
        let leg = lab.leg(&controller.login.0).ok_or_else(|| {
            Error::internal(format!("{host} is reached through a network without a leg"))
        })?;
        Ok(Sleeper {
            api: Arc::new(leg.clone()),
            names: lab.nodes().iter().map(|n| (n.name().to_owned(), n.login.1)).collect(),
            auth_url: self.auth_url.clone(),
            region: self.region.clone(),
            who: first.credentials(),
            death: lab.death(),
        })
    }

    /// An RC file whose shell reaches the lab through `proxy`, and a `clouds.yaml` for all users.
    pub fn files(&self, proxy: &Secret) -> Result<(Secret, Secret)> {
        let url = Url::parse(&self.auth_url)?;
        let first = self.users.first().ok_or_else(|| Error::internal("a cloud without a user"))?;
        let rc = rc::rc_file(&url, &self.region, &first.credentials());
        let rc = format!("{}{}", rc.reveal(), environment(proxy).reveal());
        let all: Vec<(String, Credentials)> =
            self.users.iter().map(|u| (u.name.clone(), u.credentials())).collect();
        let all: Vec<(&str, &Credentials)> = all.iter().map(|(n, c)| (n.as_str(), c)).collect();
        Ok((Secret::new(rc), rc::clouds_yaml(&url, &self.region, &all)))
    }
}

/// Shell lines that send plain HTTP into the lab. The catalogue's addresses are the lab's: only
/// the owner's proxy reaches them. What the host has set against proxies would go around it.
pub fn environment(proxy: &Secret) -> Secret {
    let proxy = proxy.reveal();
    Secret::new(format!(
        "# Into the lab's network; for this shell only, and as long as the lab runs.\n\
         export http_proxy='{proxy}' HTTP_PROXY='{proxy}'\n\
         export no_proxy='' NO_PROXY=''\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud() -> Cloud {
        let user = |name: &str| User {
            name: name.into(),
            password: format!("pw-of-{name}-0123"),
            project: name.into(),
            domain: "Default".into(),
        };
        Cloud {
            auth_url: "http://openstack1:5000/v3".into(),
            region: "RegionOne".into(),
            users: vec![user("admin"), user("demo")],
        }
    }

    #[test]
    fn the_rc_file_gives_a_shell_the_cloud_and_the_way_to_it() {
        let proxy = Secret::new("http://stackproof:p4ss@127.0.0.1:4711");
        let (rc, clouds) = cloud().files(&proxy).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("openrc");
        std::fs::write(&file, rc.reveal()).unwrap();
        let script = ". \"$0\"; echo \"$OS_AUTH_URL|$OS_PASSWORD|$http_proxy|[$no_proxy]\"";
        let out = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(&file)
            .env("no_proxy", "192.168.0.0/16")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&out.stdout),
            "http://openstack1:5000/v3|pw-of-admin-0123|http://stackproof:p4ss@127.0.0.1:4711|[]\n"
        );
        assert!(clouds.reveal().contains("\"demo\":"), "both users are in it");
    }

    #[test]
    fn a_cloud_survives_a_checkpoints_notes_and_never_prints_its_passwords() {
        let cloud = cloud();
        let notes = Cloud::notes(Some(&cloud));
        assert_eq!(Cloud::of_notes(&notes), Some(cloud.clone()));
        assert_eq!(Cloud::of_notes(&Cloud::notes(None)), None);
        assert!(!format!("{cloud:?}").contains("pw-of"));
        let redactor = Redactor::default();
        cloud.hide_in(&redactor);
        assert!(!redactor.clean(&notes.to_string()).contains("pw-of"));
    }
}
