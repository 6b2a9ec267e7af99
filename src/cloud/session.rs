//! Who asks, and where each service lives: keystone v3.
//!
//! The token is a secret of the run. It is renewed once when a service answers 401.

use super::http::{ApiError, Body, Http, Method, Reply, Request};
use super::url::Url;
use crate::error::{Error, Kind};
use crate::secret::Secret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A user within a project, both of one domain.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub user: String,
    pub password: Secret,
    pub project: String,
    /// By name, usually `Default`.
    pub domain: String,
}

/// The services that are spoken to, with the version of each API that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    Identity,
    Image,
    Compute,
    Network,
}

impl Service {
    /// Its type in the catalogue.
    pub fn kind(self) -> &'static str {
        match self {
            Service::Identity => "identity",
            Service::Image => "image",
            Service::Compute => "compute",
            Service::Network => "network",
        }
    }
    fn version(self) -> &'static str {
        match self {
            Service::Identity => "v3",
            Service::Image => "v2",
            Service::Compute => "v2.1",
            Service::Network => "v2.0",
        }
    }
    /// Stated, so that a newer server answers in the shapes that are read here.
    fn microversion(self) -> Option<&'static str> {
        match self {
            Service::Compute => Some("compute 2.79"),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct CatalogEntry {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Endpoint {
    /// `public`, `internal` or `admin`.
    pub interface: String,
    #[serde(rename = "region_id")]
    pub region: Option<String>,
    pub url: String,
}

#[derive(Debug)]
struct Token {
    secret: Secret,
    project_id: String,
    user_id: String,
    roles: Vec<String>,
    catalog: Vec<CatalogEntry>,
}

/// A logged-in user. Cheap to clone; clones share the token.
#[derive(Clone)]
pub struct Session {
    http: Http,
    auth_url: Url,
    region: String,
    who: Arc<Credentials>,
    token: Arc<Mutex<Arc<Token>>>,
}

impl Session {
    /// Logs in. The password and every token are registered with the redactor of `http`.
    pub async fn login(
        http: Http,
        auth_url: &Url,
        region: &str,
        who: Credentials,
    ) -> Result<Session, ApiError> {
        http.redactor().add(&who.password);
        let auth_url = auth_url.versioned(Service::Identity.version());
        let token = authenticate(&http, &auth_url, &who).await?;
        Ok(Session {
            http,
            auth_url,
            region: region.into(),
            who: Arc::new(who),
            token: Arc::new(Mutex::new(Arc::new(token))),
        })
    }

    pub fn user(&self) -> &str {
        &self.who.user
    }
    pub fn user_id(&self) -> String {
        self.current().user_id.clone()
    }
    pub fn project_id(&self) -> String {
        self.current().project_id.clone()
    }
    pub fn roles(&self) -> Vec<String> {
        self.current().roles.clone()
    }
    pub fn catalog(&self) -> Vec<CatalogEntry> {
        self.current().catalog.clone()
    }
    pub fn region(&self) -> &str {
        &self.region
    }

    fn current(&self) -> Arc<Token> {
        self.token.lock().expect("token lock").clone()
    }

    /// The public endpoint of a service in this session's region, with its API's version.
    fn endpoint(&self, service: Service, token: &Token) -> Result<Url, Error> {
        let Some(entry) = token.catalog.iter().find(|e| e.kind == service.kind()) else {
            return Err(Error::new(
                Kind::Proof,
                format!("the catalogue has no service of type `{}`", service.kind()),
            )
            .hint("create the service and its endpoints in keystone"));
        };
        let public = entry.endpoints.iter().filter(|e| e.interface == "public");
        match public.clone().find(|e| e.region.as_deref() == Some(&self.region)) {
            Some(endpoint) => Ok(Url::parse(&endpoint.url)?.versioned(service.version())),
            None => {
                let regions: Vec<_> = public.filter_map(|e| e.region.clone()).collect();
                Err(Error::new(
                    Kind::Proof,
                    format!(
                        "service `{}` has no public endpoint in region `{}`; it has: {regions:?}",
                        service.kind(),
                        self.region
                    ),
                )
                .hint("region names must be equal to the letter"))
            }
        }
    }

    /// One request to a service, as this user. Readings are repeated when nothing came back;
    /// what changes something is never sent twice, except after a 401.
    pub async fn call(
        &self,
        service: Service,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Reply, ApiError> {
        let mut renewals = 1;
        let mut repeats = if method == Method::GET { 2 } else { 0 };
        loop {
            let token = self.current();
            let base = self.endpoint(service, &token).map_err(|e| ApiError {
                method: method.clone(),
                path: path.into(),
                status: None,
                message: e.to_string(),
                request_id: None,
                cause: Some(e),
            })?;
            let sent = self
                .http
                .send(&Request {
                    method: method.clone(),
                    url: base.join(path),
                    body: body.clone(),
                    token: Some(token.secret.clone()),
                    microversion: service.microversion(),
                })
                .await;
            match sent {
                Err(e) if e.is(401) && renewals > 0 => {
                    renewals -= 1;
                    self.renew(&token).await?;
                }
                Err(e) if e.is_passing() && repeats > 0 => repeats -= 1,
                other => return other,
            }
        }
    }

    async fn renew(&self, stale: &Arc<Token>) -> Result<(), ApiError> {
        if !Arc::ptr_eq(&self.current(), stale) {
            return Ok(());
        }
        let fresh = authenticate(&self.http, &self.auth_url, &self.who).await?;
        *self.token.lock().expect("token lock") = Arc::new(fresh);
        Ok(())
    }

    /// GET of `path`; the member `key` of the answer (the whole answer where `key` is empty).
    pub async fn get<T: DeserializeOwned>(
        &self,
        service: Service,
        path: &str,
        key: &str,
    ) -> Result<T, ApiError> {
        let reply = self.call(service, Method::GET, path, Body::Empty).await?;
        read(&Method::GET, path, &reply, key)
    }

    /// Like [`get`](Self::get), but a 404 is an answer: there is no such thing.
    pub async fn find<T: DeserializeOwned>(
        &self,
        service: Service,
        path: &str,
        key: &str,
    ) -> Result<Option<T>, ApiError> {
        match self.get(service, path, key).await {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.is(404) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub async fn send<T: DeserializeOwned>(
        &self,
        service: Service,
        method: Method,
        path: &str,
        body: Value,
        key: &str,
    ) -> Result<T, ApiError> {
        let reply = self.call(service, method.clone(), path, Body::Json(body)).await?;
        read(&method, path, &reply, key)
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        service: Service,
        path: &str,
        body: Value,
        key: &str,
    ) -> Result<T, ApiError> {
        self.send(service, Method::POST, path, body, key).await
    }

    /// Sends a JSON body and reads nothing back but the status.
    pub async fn order(
        &self,
        service: Service,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<(), ApiError> {
        self.call(service, method, path, Body::Json(body)).await.map(drop)
    }

    pub async fn upload(&self, service: Service, path: &str, file: &Path) -> Result<(), ApiError> {
        self.call(service, Method::PUT, path, Body::File(file.into())).await.map(drop)
    }

    /// Deletes; what is already gone is fine.
    pub async fn delete(&self, service: Service, path: &str) -> Result<(), ApiError> {
        match self.call(service, Method::DELETE, path, Body::Empty).await {
            Err(e) if !e.is(404) => Err(e),
            _ => Ok(()),
        }
    }

    /// GET of a URL of the catalogue as it stands there, as this user.
    pub async fn visit(&self, url: &Url) -> Result<Reply, ApiError> {
        let token = Some(self.current().secret.clone());
        self.http.send(&Request::get(url.clone(), token)).await
    }
}

fn read<T: DeserializeOwned>(
    method: &Method,
    path: &str,
    reply: &Reply,
    key: &str,
) -> Result<T, ApiError> {
    let taken = serde_json::from_slice::<Value>(&reply.body).and_then(|mut whole| {
        let part = if key.is_empty() { whole } else { whole[key].take() };
        serde_json::from_value(part)
    });
    taken.map_err(|e| ApiError {
        method: method.clone(),
        path: path.into(),
        status: Some(reply.status),
        message: format!("the answer has no `{key}` of the expected shape: {e}"),
        request_id: reply.request_id().map(str::to_owned),
        cause: None,
    })
}

async fn authenticate(http: &Http, auth_url: &Url, who: &Credentials) -> Result<Token, ApiError> {
    #[derive(Deserialize)]
    struct Named {
        id: String,
        #[serde(default)]
        name: String,
    }
    #[derive(Deserialize)]
    struct Body_ {
        user: Named,
        project: Named,
        #[serde(default)]
        roles: Vec<Named>,
        #[serde(default)]
        catalog: Vec<CatalogEntry>,
    }
    let domain = json!({"name": who.domain});
    let request = Request {
        method: Method::POST,
        url: auth_url.join("/auth/tokens"),
        body: Body::Json(json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": who.user, "domain": domain, "password": who.password.reveal(),
            }}},
            "scope": {"project": {"name": who.project, "domain": domain}},
        }})),
        token: None,
        microversion: None,
    };
    let reply = http.send(&request).await?;
    let Some(text) = reply.header("x-subject-token") else {
        return Err(ApiError {
            method: request.method,
            path: request.url.path,
            status: Some(reply.status),
            message: "the answer has no X-Subject-Token".into(),
            request_id: reply.request_id().map(str::to_owned),
            cause: None,
        });
    };
    let secret = Secret::new(text);
    http.redactor().add(&secret);
    let body: Body_ = read(&request.method, &request.url.path, &reply, "token")?;
    Ok(Token {
        secret,
        project_id: body.project.id,
        user_id: body.user.id,
        roles: body.roles.into_iter().map(|r| r.name).collect(),
        catalog: body.catalog,
    })
}

#[cfg(test)]
mod tests {
    use super::super::mock::Mock;
    use super::*;

    #[tokio::test]
    async fn an_expired_token_is_renewed_once_and_both_stay_secret() {
        let mock = Mock::new();
        let session = mock.admin().await;
        assert_eq!(mock.http().redactor().len(), 0, "each client has a redactor of its own");
        mock.with(|s| s.expire_tokens());
        let agents: Vec<Value> = session.get(Service::Network, "/agents", "agents").await.unwrap();
        assert!(!agents.is_empty());
        assert_eq!(mock.with(|s| s.logins), 2);
        assert_eq!(session.http.redactor().len(), 3, "password and two tokens");
    }

    #[tokio::test]
    async fn a_wrong_password_is_told_in_keystones_words_and_without_the_password() {
        let mock = Mock::new();
        let who = Credentials {
            user: "admin".into(),
            password: Secret::new("not-the-password"),
            project: "admin".into(),
            domain: "Default".into(),
        };
        let url = Url::parse(mock.auth_url()).unwrap();
        let Err(e) = Session::login(mock.http(), &url, "RegionOne", who).await else {
            panic!("logged in with a wrong password");
        };
        assert!(e.is(401) && e.to_string().contains("requires authentication"), "{e}");
        assert!(!e.to_string().contains("not-the-password"));
    }

    #[tokio::test]
    async fn a_region_that_differs_in_case_is_found_out_by_name() {
        let mock = Mock::new();
        mock.with(|s| s.region = "regionOne".into());
        let session = mock.admin().await;
        let e = session.get::<Value>(Service::Network, "/agents", "agents").await.unwrap_err();
        assert!(
            e.to_string().contains("`RegionOne`") && e.to_string().contains("regionOne"),
            "{e}"
        );
    }

    #[tokio::test]
    async fn readings_are_repeated_when_a_service_is_starting_and_writings_are_not() {
        let mock = Mock::new();
        let session = mock.admin().await;
        mock.with(|s| s.unavailable = 2);
        session.get::<Value>(Service::Network, "/agents", "agents").await.unwrap();
        mock.with(|s| s.unavailable = 1);
        let body = json!({"network": {"name": "n"}});
        let e = session.post::<Value>(Service::Network, "/networks", body, "network").await;
        assert!(e.unwrap_err().is(503));
        assert_eq!(mock.with(|s| s.of("networks").len()), 0);
    }
}
