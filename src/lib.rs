//! stackproof boots a cluster of virtual machines, provisions OpenStack on it, and proves from
//! outside that it works.
//!
//! The rooms of the house, from the ground up. A room uses only those before it in this list:
//!
//! * [`error`], [`event`], [`secret`], [`wait`], [`lockfile`]: the ground. What can go wrong, what
//!   happens, what must never be shown, how everything that takes time is waited for, and how
//!   processes keep out of each other's way.
//! * [`fsutil`]: how files that a user named are written.
//! * [`outbound`]: proxies and certificate authorities, as the environment has them.
//! * [`host`]: what the host has (tools, memory, devices, mirrors) and how to get what it lacks.
//! * [`images`]: manifests, the content-addressed store, downloads, inspection, recipes.
//! * [`lab`]: virtual machines and the network between them. Knows no OpenStack and no engine.
//! * [`engine`]: typed resources, observed and changed over SSH. Knows no OpenStack.
//! * [`layers`]: checkpoints of labs, kept by what made them and taken up again.
//! * [`roles`]: what each OpenStack service needs, as data for the engine.
//! * [`cloud`]: the OpenStack APIs and the proof, step by step.
//! * [`diagnose`]: evidence gathered when something fails.
//! * [`cluster`]: a running cluster, used by `e2e` and the supervisor: boot, restore, checkpoint,
//!   provision, checks, proof, evidence. Knows no command line.
//! * [`supervisor`]: a running lab as a process of its own, found by name, spoken to over a socket.
//! * [`cli`]: the only room that prints or reads the environment.

pub mod cli;
pub mod cloud;
pub mod cluster;
pub mod diagnose;
pub mod engine;
pub mod error;
pub mod event;
pub mod fsutil;
pub mod host;
pub mod images;
pub mod lab;
pub mod layers;
pub mod lockfile;
pub mod outbound;
pub mod roles;
pub mod secret;
pub mod supervisor;
pub mod wait;
