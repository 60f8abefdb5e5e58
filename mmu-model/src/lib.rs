//! Lazy MMU mode on the machine: the library's own code, with tasks that lose their CPU between any two of its steps, interrupts that
//! change page tables, and a checker that knows what is mapped, what waits, and what a TLB has kept.
//!
//! * [`Program`]: what each task does; [`Statement`]s for the mode's calls, for page tables, for locks and interrupts.
//! * [`Api`], [`Arch`]: what it runs under; [`Api::claims`] says where it must pass. [`Mutant`]: what can be planted.
//! * [`Model`]: the program on a machine; explore it, shrink what was found, replay it.
//! * [`Rule`]: what is checked, by the numbers that the literature of the mode gives it.
//! * [`litmus`]: programs as text.
//!
//! Memory is sequentially consistent: what waits here waits in batches, queues and caches.

mod backend;
mod calls;
mod device;
mod hardware;
mod kernel;
pub mod litmus;

mod model;
mod names;
pub mod program;
mod rules;
mod world;

pub use litmus::Litmus;

pub use model::{Model, Setting};
pub use names::{Api, Arch, Mutant};
pub use program::{Program, Statement};
pub use rules::Rule;
