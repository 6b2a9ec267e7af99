//! Projects, users, roles and endpoints.

use super::http::{ApiError, Body, Method};
use super::session::{Service, Session};
use super::url::query_value;
use crate::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

/// Anything that keystone names.
#[derive(Clone, Debug, Deserialize)]
pub struct Named {
    pub id: String,
    pub name: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Assignment {
    pub role: RoleRef,
    pub scope: Value,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RoleRef {
    pub id: String,
}

pub struct Identity<'a>(pub &'a Session);

impl Identity<'_> {
    pub async fn create_project(&self, name: &str, description: &str) -> Result<Named, ApiError> {
        let body = json!({"project": {
            "name": name, "description": description, "domain_id": "default", "enabled": true,
        }});
        self.0.post(Service::Identity, "/projects", body, "project").await
    }

    pub async fn create_user(&self, name: &str, password: &Secret) -> Result<Named, ApiError> {
        let body = json!({"user": {
            "name": name, "password": password.reveal(), "domain_id": "default", "enabled": true,
        }});
        self.0.post(Service::Identity, "/users", body, "user").await
    }

    pub async fn role(&self, name: &str) -> Result<Option<Named>, ApiError> {
        let path = format!("/roles?name={}", query_value(name));
        let found: Vec<Named> = self.0.get(Service::Identity, &path, "roles").await?;
        Ok(found.into_iter().next())
    }

    pub async fn grant(&self, project: &str, user: &str, role: &str) -> Result<(), ApiError> {
        let path = format!("/projects/{project}/users/{user}/roles/{role}");
        self.0.call(Service::Identity, Method::PUT, &path, Body::Empty).await.map(drop)
    }

    pub async fn assignments(&self, user: &str) -> Result<Vec<Assignment>, ApiError> {
        let path = format!("/role_assignments?user.id={user}");
        self.0.get(Service::Identity, &path, "role_assignments").await
    }
}
