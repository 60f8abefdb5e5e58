//! Lazy MMU mode on the machine: the library's own code, with tasks that lose their CPU between any two of its steps, and
//! interrupts that change page tables.
//!
//! [`World`] has one or two CPUs, and two tasks with a script each. Whoever runs may be interrupted by a timer, before any step at
//! which it can be preempted; the CPU goes to the other task then, and with two CPUs the first task may go on on the second one. Or
//! each has a CPU of its own. What is checked ([`Rule`]) has the numbers that the literature of the mode gives it.
//!
//! * [`kernel`]: [`LabMmu`], the machine as the back ends see it;
//! * [`world`]: tasks, switches, interrupts, checks;
//! * [`shadow`]: KASAN's shadow of vmalloc space, which is installed and removed in sections.

pub mod kernel;
pub mod shadow;
pub mod world;

pub use kernel::{Flaw, LabMmu};
pub use shadow::Cure;
pub use world::{Arch, Placement, Rule, Step, World};
