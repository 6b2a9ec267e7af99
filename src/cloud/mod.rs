//! The OpenStack APIs and the proof, step by step.
//!
//! From the ground up: [`http`] is one request over any byte stream, [`session`] adds who asks and
//! where each service lives, [`identity`], [`image`], [`compute`] and [`network`] are thin typed
//! clients with only what the proof uses, [`rc`] writes what a person needs to look for himself,
//! [`awake`] asks a restored cloud whether it goes on, and [`proof`] is the story that says whether it
//! works.

pub mod awake;
pub mod compute;
pub mod http;
pub mod identity;
pub mod image;
#[cfg(test)]
mod mock;
pub mod network;
pub mod proof;
pub mod rc;
pub mod session;
pub mod url;

use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncWrite};

/// What a trait's async method returns where the trait is used as an object.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Any connected byte stream: the outside endpoint's TCP, a loopback socket, a pipe of a test.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
