//! Layers: checkpoints of a lab at the stages of its making, named by all that made them, and
//! taken up again instead of doing the same twice. Knows no OpenStack.
//!
//! * [`inputs`]: what goes into a key, by names that can be explained.
//! * [`lab`]: the inputs that a lab gives before any step is applied; [`rungs`]: the key of every
//!   stage.
//! * [`store`]: where layers are kept; [`usage`]: what they really take; [`budget`]: which are
//!   kept when space is short.
//! * [`why`]: why a layer serves or does not.
//! * [`climb`]: from the deepest layer that serves to the last stage, keeping layers on the way.

pub mod budget;
pub mod climb;
pub mod inputs;
pub mod lab;
pub mod rungs;
pub mod store;
pub mod usage;
pub mod why;

pub use climb::{Climb, Site, Way};
pub use inputs::{Inputs, Key};
pub use rungs::{Rung, rungs};
pub use store::{Held, Layer, Layers, hold};
