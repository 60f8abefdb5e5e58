//! The chain of MMU notifiers on the machine: the library's own code, with memory management that changes page tables, devices that translate by tables and
//! TLBs of their own, and a checker that knows who still leads to which page.
//!
//! * [`Program`]: what memory management does on each CPU, and what devices do meanwhile; [`Statement`]s.
//! * [`Client`]: how a device's driver keeps it right: the ways that are in use, or were, and one that was given up.
//! * [`Scheme`]: what keeps subscribers in place while they are called. [`Mutant`]: what can be planted.
//! * [`Model`]: the program on a machine; explore it, shrink what was found, replay it.
//! * [`Invariant`]: what is checked, by the numbers that the literature gives it.
//! * [`litmus`]: programs as text.

mod device;
mod devices;
mod kernel;
pub mod litmus;
mod memory;
mod model;
mod names;
pub mod program;
mod rules;
mod world;

pub use litmus::Litmus;
pub use model::{Model, Setting};
pub use names::{Client, Mutant, Scheme};
pub use program::{Program, Statement};
pub use rules::Invariant;
