//! An architecture that writes down what it is asked for.

use std::cell::{Cell, RefCell};

use lazytlb_lazy_mmu::{ArchLevels, LazyMmuArch, Warning};

#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) in_interrupt: Cell<bool>,
    /// What the mode was entered with.
    pub(crate) level: Cell<Option<u32>>,
    seen: RefCell<Vec<String>>,
}

impl Recorder {
    fn saw(&self, what: impl Into<String>) {
        self.seen.borrow_mut().push(what.into());
    }

    /// What was seen since the last time, callbacks and warnings.
    pub(crate) fn seen(&self) -> String {
        self.seen.take().join(" ")
    }
}

impl LazyMmuArch for Recorder {
    type Ptes = u32;

    fn debug_vm(&self) -> bool {
        true
    }
    fn in_interrupt(&self) -> bool {
        self.in_interrupt.get()
    }
    fn arch_enter_lazy_mmu_mode(&self) {
        self.saw("enter");
        self.level.set(None);
    }
    fn arch_enter_lazy_mmu_mode_with_ptes(&self, ptes: u32) {
        self.saw(format!("enter({ptes})"));
        self.level.set(Some(ptes));
    }
    fn arch_leave_lazy_mmu_mode(&self) {
        self.saw("leave");
        self.level.set(None);
    }
    fn arch_flush_lazy_mmu_mode(&self) {
        self.saw("flush");
    }
    fn warn(&self, warning: Warning) {
        self.saw(format!("{warning:?}!"));
    }
    fn bug(&self, warning: Warning) {
        self.saw(format!("{warning:?}!!"));
    }
}

impl ArchLevels for Recorder {
    type Level = Option<u32>;

    fn arch_save_lazy_mmu_mode(&self) -> Option<u32> {
        self.level.get()
    }
    unsafe fn arch_restore_lazy_mmu_mode(&self, level: Option<u32>) {
        self.saw(level.map_or("restore".into(), |ptes| format!("restore({ptes})")));
        self.level.set(level);
    }
}
