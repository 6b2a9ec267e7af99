//! Images: created, uploaded, shown.

use super::http::ApiError;
use super::session::{Service, Session};
use super::url::query_value;
use serde::Deserialize;
use serde_json::json;
use std::path::Path;

#[derive(Clone, Debug, Deserialize)]
pub struct Image {
    pub id: String,
    pub name: String,
    /// `queued`, `saving`, `importing`, `active`, `killed`, `deleted`, ...
    pub status: String,
    pub visibility: String,
    #[serde(default)]
    pub min_disk: u64,
    /// Bytes, once uploaded.
    pub size: Option<u64>,
    /// `sha512` unless glance was told otherwise.
    pub os_hash_algo: Option<String>,
    pub os_hash_value: Option<String>,
}

pub struct Images<'a>(pub &'a Session);

impl Images<'_> {
    /// An empty private qcow2 image; `min_disk` in GiB.
    pub async fn create(&self, name: &str, min_disk: u64) -> Result<Image, ApiError> {
        let body = json!({
            "name": name, "disk_format": "qcow2", "container_format": "bare",
            "visibility": "private", "min_disk": min_disk,
        });
        self.0.post(Service::Image, "/images", body, "").await
    }

    pub async fn upload(&self, id: &str, file: &Path) -> Result<(), ApiError> {
        self.0.upload(Service::Image, &format!("/images/{id}/file"), file).await
    }

    pub async fn show(&self, id: &str) -> Result<Option<Image>, ApiError> {
        self.0.find(Service::Image, &format!("/images/{id}"), "").await
    }

    pub async fn named(&self, name: &str) -> Result<Vec<Image>, ApiError> {
        let path = format!("/images?name={}", query_value(name));
        self.0.get(Service::Image, &path, "images").await
    }
}
