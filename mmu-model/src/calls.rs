//! The generations of the API behind one type: what a task's state is, and what its calls do.

use core::any::Any;

use lazytlb_lazy_mmu::backends::xen::SwitchState;
use lazytlb_lazy_mmu::generations::{Counter, CounterSave, Found, Hooks, Stack, V3, V4};
use lazytlb_lazy_mmu::{Generation, LazyMmuArch, LazyMmuState};
use lazytlb_machine::{Machine, ObjectKind, SimLocal};

use crate::kernel::placed;
use crate::names::Api;

/// The entries that a section names: the first, and the last.
pub(crate) type Named = (usize, usize);

/// An architecture, whichever it is.
pub(crate) type DynArch<'a> = &'a dyn LazyMmuArch<Ptes = Named>;

/// A task's state, of whatever generation. What enable and pause return is a byte.
pub(crate) trait Calls {
    fn enable(&self, arch: DynArch<'_>, named: Option<Named>) -> u8;
    fn disable(&self, arch: DynArch<'_>, section: u8);
    fn pause(&self, arch: DynArch<'_>) -> u8;
    fn resume(&self, arch: DynArch<'_>, pause: u8);
    /// Whether the task has the mode on, an interrupt or not.
    fn is_on(&self) -> bool;
    fn counts(&self) -> (u8, u8);
    /// The merged generation's, which alone can be paused at a switch.
    fn merged(&self) -> Option<&LazyMmuState<SimLocal<u8>>>;
}

/// What a caller keeps, as a byte.
pub(crate) trait Kept {
    fn to_byte(self) -> u8;
    fn of_byte(byte: u8) -> Self;
}

impl Kept for () {
    fn to_byte(self) -> u8 {
        0
    }
    fn of_byte(_: u8) -> Self {}
}

impl Kept for u8 {
    fn to_byte(self) -> u8 {
        self
    }
    fn of_byte(byte: u8) -> Self {
        byte
    }
}

impl Kept for Found {
    fn to_byte(self) -> u8 {
        u8::from(self == Found::Nested)
    }
    fn of_byte(byte: u8) -> Self {
        if byte == 0 { Found::Default } else { Found::Nested }
    }
}

impl<G> Calls for G
where
    G: Generation<Section: Kept, Pause: Kept> + 'static,
{
    fn enable(&self, arch: DynArch<'_>, named: Option<Named>) -> u8 {
        match named {
            Some(named) => Generation::enable_with_ptes(self, arch, named).to_byte(),
            None => Generation::enable(self, arch).to_byte(),
        }
    }
    fn disable(&self, arch: DynArch<'_>, section: u8) {
        Generation::disable(self, arch, Kept::of_byte(section));
    }
    fn pause(&self, arch: DynArch<'_>) -> u8 {
        Generation::pause(self, arch).to_byte()
    }
    fn resume(&self, arch: DynArch<'_>, pause: u8) {
        Generation::resume(self, arch, Kept::of_byte(pause));
    }
    fn is_on(&self) -> bool {
        Generation::is_on(self)
    }
    fn counts(&self) -> (u8, u8) {
        Generation::counts(self)
    }
    fn merged(&self) -> Option<&LazyMmuState<SimLocal<u8>>> {
        (self as &dyn Any).downcast_ref()
    }
}

/// Places the states of so many tasks.
pub(crate) fn place(machine: &Machine, api: Api, tasks: usize) -> Vec<&'static dyn Calls> {
    type Word = SimLocal<u8>;
    fn states<G: Calls + Default + 'static>(machine: &Machine, tasks: usize) -> Vec<&'static dyn Calls> {
        let states = placed(machine.place_slice("lazy_mmu_state", ObjectKind::Task, tasks, |_| G::default()));
        states.iter().map(|state| state as &dyn Calls).collect()
    }
    match api {
        Api::Hooks => states::<Hooks<Word>>(machine, tasks),
        Api::HooksStrict => states::<Hooks<Word, true>>(machine, tasks),
        Api::Stack => states::<Stack<Word>>(machine, tasks),
        Api::Counter => states::<Counter<Word>>(machine, tasks),
        Api::CounterSave => states::<CounterSave<Word>>(machine, tasks),
        Api::V3 => states::<V3<Word>>(machine, tasks),
        Api::V4 => states::<V4<Word>>(machine, tasks),
        Api::Merged => states::<LazyMmuState<Word>>(machine, tasks),
    }
}

/// A task's state at a switch.
pub(crate) struct Switched<'a>(pub(crate) &'a dyn Calls);

impl SwitchState for Switched<'_> {
    fn is_on(&self) -> bool {
        self.0.is_on()
    }
    fn pause<A: LazyMmuArch>(&self, arch: &A) {
        if let Some(state) = self.0.merged() {
            state.task_lazy_mmu_mode_pause(arch);
        }
    }
    fn resume<A: LazyMmuArch>(&self, arch: &A) {
        if let Some(state) = self.0.merged() {
            state.task_lazy_mmu_mode_resume(arch);
        }
    }
}
