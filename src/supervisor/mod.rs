//! A running lab as a thing of its own: one owner process each, found by name, spoken to over a
//! private socket. Prints nothing; the command line shows what comes from here.

pub mod client;
pub mod fault;
mod forward;
mod handles;
pub mod login;
pub mod owner;
pub mod place;
pub mod protocol;
mod proxy;
pub mod remote;
pub mod seam;
mod serve;
mod socket;
pub mod starter;
pub mod status;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use owner::{Ended, Owner};
pub use place::{Claim, Place};
pub use starter::Starter;
