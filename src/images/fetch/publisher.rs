//! What a publisher's server says of its files: checksum files, indexes, sizes. Nothing of it
//! enters the store.

use super::request::Requests;
use super::{Failed, Options, answered, run_apart, text_of, url};
use crate::error::{Context, Error, Kind, Result};
use crate::event::Events;
use std::io::Read;
use ureq::Body;
use ureq::http::{Response, StatusCode, header};

/// No checksum file and no index is longer, in bytes.
const MAX_TEXT: u64 = 4 << 20;

/// A publisher's server. `None` in an answer stands for a file that is not there (404, 410).
#[derive(Clone, Debug)]
pub struct Publisher {
    pub options: Options,
    pub events: Events,
}

/// A file on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedFile {
    /// Bytes, where the server says so.
    pub size: Option<u64>,
}

impl Publisher {
    /// The text at `url`.
    pub async fn read_text(&self, url: &str) -> Result<Option<String>> {
        self.ask(url, |response| {
            let mut text = Vec::new();
            response.into_body().into_reader().take(MAX_TEXT + 1).read_to_end(&mut text)?;
            if text.len() as u64 > MAX_TEXT {
                let message = format!("it has more than {} MiB", MAX_TEXT >> 20);
                return Err(std::io::Error::other(message));
            }
            Ok(String::from_utf8_lossy(&text).into_owned())
        })
        .await
    }

    /// Whether there is a file at `url`, and its size. Its bytes are not fetched.
    pub async fn look(&self, url: &str) -> Result<Option<PublishedFile>> {
        self.ask(url, |response| {
            let size = text_of(&response, header::CONTENT_LENGTH).and_then(|n| n.parse().ok());
            Ok(PublishedFile { size })
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        url: &str,
        read: impl FnOnce(Response<Body>) -> std::io::Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        let requests = Requests::new(&self.options, std::iter::once(url), &self.events)?;
        let (agent, url) = (requests.agent.clone(), url.to_owned());
        run_apart("ask a publisher", agent, Default::default(), move || {
            let cannot = || Error::image(format!("{} could not be read", url::shown(&url)));
            let response = requests.get(&url, None).map_err(|failed| match failed {
                Failed::Stop(e) => e,
                Failed::Again(reason) | Failed::Next(reason) => {
                    let error = cannot().because(reason.what);
                    match reason.hint {
                        Some(hint) => error.hint(hint),
                        None => error,
                    }
                }
            })?;
            match response.status() {
                StatusCode::OK => read(response)
                    .doing(Kind::Image, || format!("{} could not be read", url::shown(&url)))
                    .map(Some),
                StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
                status => Err(cannot().because(answered(status) + &requests.through(&url))),
            }
        })
        .await
    }
}
