//! What is watched: the facts about each CPU that no single access can give away.
//!
//! Three verdicts, never merged. A CPU *holds* a dangling pointer if its `active_mm` names an mm that is freed now. It
//! *dereferences* one if it touches the mm's memory; that is the machine's own check of each access. Its *hardware
//! reaches* a freed table if a walk from the root in its MMU could come to one: a speculative walker may take that walk
//! at any time, so it is asked at each moment at which the answer can change, when a table is freed and when a root is
//! loaded, instead of letting an agent walk at every step.

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::LocalWord;
use lazytlb_core::platform::Root;
use lazytlb_machine::{Kind, Machine, ObjectKind, SimLocal};

use crate::tables::Table;

type Describe = dyn Fn(&Machine) -> Vec<String>;

/// The facts about all CPUs.
pub(crate) struct Watch {
    /// What each CPU's MMU has loaded.
    roots: &'static [SimLocal<usize>],
    /// The address of the mm that a CPU has as `active_mm`.
    active_mm: Box<dyn Fn(usize) -> usize>,
    /// The name of the mm at an address.
    name_of: Box<dyn Fn(usize) -> String>,
    /// The facts in words.
    describe: Box<Describe>,
    /// Whether the one-byte check of `prev->active_mm` is in the switch path.
    pub(crate) checks_active_mm: bool,
}

impl core::fmt::Debug for Watch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Watch").field("checks_active_mm", &self.checks_active_mm).finish_non_exhaustive()
    }
}

thread_local! {
    /// The root registers of the machine that is being set up.
    static ROOTS: core::cell::Cell<Option<&'static [SimLocal<usize>]>> = const { core::cell::Cell::new(None) };
}

impl Watch {
    /// Places the root registers of a machine.
    pub(crate) fn place_roots(machine: &Machine) {
        let cpus = machine.config().cpus;
        let roots: *const [SimLocal<usize>] =
            machine.place_slice("cr3", ObjectKind::PerCpu, cpus, |_| LocalWord::new(0));
        // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
        ROOTS.set(Some(unsafe { &*roots }));
    }

    /// The root registers of the machine that is being set up.
    pub(crate) fn roots_of(_machine: &Machine) -> &'static [SimLocal<usize>] {
        ROOTS.get().expect("placed first thing in set-up")
    }

    pub(crate) fn new(
        machine: &Machine,
        active_mm: impl Fn(usize) -> usize + 'static,
        name_of: impl Fn(usize) -> String + 'static,
        describe: impl Fn(&Machine) -> Vec<String> + 'static,
        checks_active_mm: bool,
    ) -> Watch {
        let roots = Self::roots_of(machine);
        let (active_mm, name_of, describe) = (Box::new(active_mm), Box::new(name_of), Box::new(describe));
        Watch { roots, active_mm, name_of, describe, checks_active_mm }
    }

    /// What each CPU is on and what holds each mm.
    pub(crate) fn facts(&self, machine: &Machine) -> Vec<String> {
        (self.describe)(machine)
    }

    /// A CPU loads a root.
    pub(crate) fn load_root(&self, cpu: usize, root: Root, at: &'static Location<'static>) {
        self.roots[cpu].set(root.0);
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
        let root = core::ptr::with_exposed_provenance(self.roots[cpu].peek());
        Machine::with(|machine| walk(root, machine))
    }

    fn check_walk(&self, cpu: usize, at: &'static Location<'static>) {
        if let Some(table) = self.reaches_freed(cpu) {
            Machine::with(|machine| {
                machine.report_rule("hardware-reaches-freed-table", "Page walk of table", table, at);
                let name = machine.name_of_ptr(table);
                machine.fail(Kind::HardwareReaches, format!("cpu{cpu}'s page walk reaches the freed {name}"));
            });
        }
    }

    pub(crate) fn free_table(&self, table: NonNull<Table>, at: &'static Location<'static>) {
        Machine::with(|machine| machine.free(table, at));
        for cpu in 0..self.roots.len() {
            self.check_walk(cpu, at);
        }
    }

    /// Frees the root table and the mm.
    pub(crate) fn free_mm(&self, mm: NonNull<()>, root: Root, at: &'static Location<'static>) {
        if let Some(root) = NonNull::new(core::ptr::with_exposed_provenance_mut(root.0)) {
            self.free_table(root, at);
        }
        let address = mm.as_ptr().addr();
        let name = (self.name_of)(address);
        Machine::with(|machine| {
            machine.free(mm, at);
            for cpu in 0..self.roots.len() {
                if (self.active_mm)(cpu) == address {
                    machine.fail(Kind::Holds, format!("cpu{cpu} has the freed {name} as active_mm"));
                }
            }
        });
    }
}
