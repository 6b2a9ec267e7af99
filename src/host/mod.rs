//! What the host has, and how to get what it lacks.

pub mod apt_config;
pub mod tool;
pub mod version;

pub use apt_config::Mirrors;
