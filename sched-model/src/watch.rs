//! What is watched: the facts about each CPU that no single access can give away.
//!
//! Three verdicts, never merged. A CPU *holds* a dangling pointer if its `active_mm` names an mm that is freed now. It
//! *dereferences* one if it touches the mm's memory; that is the machine's own check of each access. Its *hardware
//! reaches* a freed table if a walk from the root in its MMU could come to one: a speculative walker may take that walk
//! at any time, so it is asked at each moment at which the answer can change, when a table is freed and when a root is
//! loaded.
//!
//! That says nothing of walks that are under way, nor of translations that are cached: [`tlb`](crate::tlb) has them, and a
//! program can ask for a *walker* of a CPU, an agent that takes walks step by step. It is what finds that tables were
//! freed without the flush before.

use core::panic::Location;
use core::ptr::NonNull;
use std::rc::Rc;

use lazytlb_core::platform::Root;
use lazytlb_machine::{Kind, Machine};

use crate::program::Program;
use crate::tables::Table;
use crate::tlb::Mmus;
use crate::worker::Worker;

type Describe = dyn Fn(&Machine) -> Vec<String>;

/// The facts about all CPUs.
pub(crate) struct Watch {
    /// The address of the mm that a CPU has as `active_mm`.
    active_mm: Box<dyn Fn(usize) -> usize>,
    /// The name of the mm at an address.
    name_of: Box<dyn Fn(usize) -> String>,
    /// The facts in words.
    describe: Box<Describe>,
    /// Whether the one-byte check of `prev->active_mm` is in the switch path.
    pub(crate) checks_active_mm: bool,
    /// Whether a root that a CPU has loaded must not be unpinned.
    pins_roots: bool,
    /// Whether freeing an mm may sleep.
    freeing_sleeps: bool,
    /// The CPUs that are to be left alone.
    pub(crate) isolated: Vec<usize>,
    /// The worker, on a machine that has one.
    worker: Option<&'static Worker>,
    /// What each CPU has loaded and cached.
    mmus: Rc<Mmus>,
}

impl core::fmt::Debug for Watch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Watch").field("checks_active_mm", &self.checks_active_mm).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn new(
        mmus: Rc<Mmus>,
        active_mm: impl Fn(usize) -> usize + 'static,
        name_of: impl Fn(usize) -> String + 'static,
        describe: impl Fn(&Machine) -> Vec<String> + 'static,
        worker: Option<&'static Worker>,
        program: &Program,
    ) -> Watch {
        let (active_mm, name_of, describe) = (Box::new(active_mm), Box::new(name_of), Box::new(describe));
        let (isolated, checks_active_mm) = (program.isolated.clone(), program.checks_active_mm);
        let (pins_roots, freeing_sleeps) = (program.kernel.pins_roots, program.kernel.freeing_sleeps);
        Watch { mmus, active_mm, name_of, describe, checks_active_mm, pins_roots, freeing_sleeps, isolated, worker }
    }

    /// The worker.
    ///
    /// # Panics
    /// On a machine without: a strategy asks for it that does not say so.
    pub(crate) fn worker(&self) -> &'static Worker {
        self.worker.expect("strategies that ask for the worker say so")
    }

    /// The MMUs.
    pub(crate) fn mmus(&self) -> &Mmus {
        &self.mmus
    }

    /// What each CPU is on and what holds each mm.
    pub(crate) fn facts(&self, machine: &Machine) -> Vec<String> {
        (self.describe)(machine)
    }

    /// A CPU loads a root with a tag; with `keep`, what is cached under the tag stays in use.
    pub(crate) fn load_root(&self, cpu: usize, root: Root, tag: usize, keep: bool, at: &'static Location<'static>) {
        self.mmus.load_root(cpu, root, tag, keep);
        self.check_walk(cpu, at);
    }

    /// Whether a walk from the root of `cpu` can come to a freed table, and to which.
    fn reaches_freed(&self, cpu: usize) -> Option<*const Table> {
        fn walk(table: *const Table, machine: &Machine) -> Option<*const Table> {
            if table.is_null() {
                return None;
            }
            if !machine.is_live(table) {
                return Some(table);
            }
            // SAFETY: in the arena, and allocated.
            unsafe { &*table }.below().find_map(|below| walk(below, machine))
        }
        Machine::with(|machine| {
            machine.inspect(|| walk(core::ptr::with_exposed_provenance(self.mmus.read_root(cpu)), machine))
        })
    }

    fn check_walk(&self, cpu: usize, at: &'static Location<'static>) {
        if let Some(table) = self.reaches_freed(cpu) {
            Machine::with(|machine| {
                machine.report_rule("hardware-reaches-freed-table", "Page walk of table", table, at);
                let name = machine.name_of_ptr(table);
                machine.fail(Kind::HardwareReaches, format!("I1: cpu{cpu}'s page walk reaches the freed {name}"));
            });
        }
    }

    /// The last user is gone, and a hypervisor that keeps page tables pinned is told to let the root go: no CPU may have it
    /// loaded then.
    pub(crate) fn unpin(&self, root: Root) {
        if !self.pins_roots {
            return;
        }
        Machine::with(|machine| {
            let loaded = |cpu: &usize| machine.inspect(|| self.mmus.read_root(*cpu)) == root.0;
            if let Some(cpu) = (0..self.mmus.cpus()).find(loaded) {
                machine.fail(Kind::Assertion, format!("a root is unpinned that cpu{cpu} has loaded"));
            }
        });
    }

    pub(crate) fn free_table(&self, table: NonNull<Table>, at: &'static Location<'static>) {
        Machine::with(|machine| machine.free(table, at));
        for cpu in 0..self.mmus.cpus() {
            self.check_walk(cpu, at);
        }
    }

    /// Frees the root table and the mm.
    pub(crate) fn free_mm(&self, mm: NonNull<()>, root: Root, at: &'static Location<'static>) {
        if self.freeing_sleeps {
            Machine::with(|machine| machine.might_sleep_by("I11: "));
        }
        if let Some(root) = NonNull::new(core::ptr::with_exposed_provenance_mut(root.0)) {
            self.free_table(root, at);
        }
        let address = mm.as_ptr().addr();
        Machine::with(|machine| {
            machine.free(mm, at);
            for cpu in 0..self.mmus.cpus() {
                if machine.inspect(|| (self.active_mm)(cpu)) == address {
                    let name = (self.name_of)(address);
                    machine.fail(Kind::Holds, format!("cpu{cpu} has the freed {name} as active_mm"));
                }
            }
        });
    }
}
