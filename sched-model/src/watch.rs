//! What is watched: the facts about each CPU that no single access can give away.
//!
//! Three verdicts, never merged. A CPU *holds* a dangling pointer if its `active_mm` names an mm that is freed now. It
//! *dereferences* one if it touches the mm's memory; that is the machine's own check of each access. Its *hardware
//! reaches* a freed table if a walk from the root in its MMU could come to one: a speculative walker may take that walk
//! at any time, so it is asked at each moment at which the answer can change, when a table is freed and when a root is
//! loaded.
//!
//! That says nothing of walks that are under way: a walker, and a paging-structure cache, may hold a pointer to a lower
//! table that has been unhooked since. A program can ask for a *walker* of a CPU, an agent that takes such walks step by
//! step; loading a root or flushing makes it forget what it holds. It is what finds that tables were freed without the
//! flush before.

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::LocalWord;
use lazytlb_core::platform::Root;
use lazytlb_machine::{Kind, Machine, MemoryModel, ObjectKind, SimLocal};

use crate::platform::watch;
use crate::program::Program;
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
    /// The walk that each CPU's walker is in the middle of, if it has a walker.
    walks: Vec<Option<&'static Walk>>,
}

/// Where a walker is.
struct Walk {
    /// The table that it reads next; null if it starts again from the root.
    table: SimLocal<*mut Table>,
    /// How many levels it has come down.
    depth: SimLocal<usize>,
    /// Written by each flush, so that the walker's steps are known to depend on it.
    flush: SimLocal<usize>,
    /// Which agent it is.
    agent: usize,
}

/// How many levels of tables there are.
const LEVELS: usize = 3;

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
    /// Places the root registers of a machine, which boots on the tables at `init`.
    pub(crate) fn place_roots(machine: &Machine, init: Root) {
        let cpus = machine.config().cpus;
        let roots: *const [SimLocal<usize>] =
            machine.place_slice("cr3", ObjectKind::PerCpu, cpus, |_| LocalWord::new(init.0));
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
        program: &Program,
    ) -> Watch {
        let roots = Self::roots_of(machine);
        let (active_mm, name_of, describe) = (Box::new(active_mm), Box::new(name_of), Box::new(describe));
        let walk = |cpu: usize| {
            program.walkers.iter().position(|&walker| walker == cpu).map(|index| {
                let null = LocalWord::new(core::ptr::null_mut());
                // Agents come after the CPUs.
                let agent = program.cpus() + index;
                let walk = Walk { table: null, depth: LocalWord::new(0), flush: LocalWord::new(0), agent };
                let walk: *const Walk = machine.place("walker", ObjectKind::PerCpu, walk);
                // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
                unsafe { &*walk }
            })
        };
        let walks = (0..program.cpus()).map(walk).collect();
        Watch { roots, active_mm, name_of, describe, checks_active_mm: program.checks_active_mm, walks }
    }

    /// The life of a CPU's walker: it takes one step of a walk after the other, and may stop after any.
    pub(crate) fn walk_for_ever(cpu: usize) {
        let goes_on = || {
            Machine::with(|machine| {
                machine.checkpoint(0, false);
                machine.choose(2) == 0
            })
        };
        while goes_on() {
            Machine::with(|machine| machine.agent_step(|| watch(|watch| watch.walk_on(machine, cpu)).unwrap_or(())));
        }
    }

    /// One step of a walk.
    fn walk_on(&self, machine: &Machine, cpu: usize) {
        let Some(walk) = self.walks[cpu] else { return };
        let root = core::ptr::with_exposed_provenance_mut(machine.look(self.roots[cpu].word()));
        machine.look(walk.flush.word());
        let (table, depth) =
            if walk.table.peek().is_null() { (root, 0) } else { (walk.table.peek(), walk.depth.peek()) };
        if !machine.is_live(table) {
            machine.report_rule("hardware-reaches-freed-table", "Page walk of table", table, Location::caller());
            let name = machine.name_of_ptr(table);
            machine.fail(Kind::HardwareReaches, format!("cpu{cpu}'s walker reads the freed {name}"));
        }
        // SAFETY: in the arena, and allocated.
        let below = machine.look(unsafe { &*table }.first());
        let ends = below.is_null() || depth + 1 == LEVELS;
        walk.table.poke(if ends { core::ptr::null_mut() } else { below });
        walk.depth.poke(if ends { 0 } else { depth + 1 });
    }

    /// The CPU's walker forgets what it holds, as part of the step that is under way. From here on it finds in the tables
    /// what the CPU that is running would find.
    fn forget(&self, cpu: usize) {
        if let Some(walk) = self.walks[cpu] {
            Machine::try_with(|machine| machine.refresh(walk.agent));
            walk.table.poke(core::ptr::null_mut());
            walk.depth.poke(0);
        }
    }

    /// A CPU drops its cached translations and partial walks.
    pub(crate) fn flush_local(&self, cpu: usize) {
        if let Some(walk) = self.walks[cpu] {
            walk.flush.set(0);
            self.forget(cpu);
        }
    }

    /// The hardware of all CPUs does, and the walks that it was in the middle of are over.
    pub(crate) fn flush_all(&self) {
        Machine::with(Machine::hardware_is_done);
        for cpu in 0..self.walks.len() {
            self.flush_local(cpu);
        }
    }

    /// What each CPU is on and what holds each mm.
    pub(crate) fn facts(&self, machine: &Machine) -> Vec<String> {
        (self.describe)(machine)
    }

    /// A CPU loads a root.
    pub(crate) fn load_root(&self, cpu: usize, root: Root, at: &'static Location<'static>) {
        let former = self.roots[cpu].peek();
        self.roots[cpu].set(root.0);
        if former != root.0 {
            Machine::try_with(|machine| Self::leave(machine, core::ptr::with_exposed_provenance(former)));
        }
        self.forget(cpu);
        self.check_walk(cpu, at);
    }

    /// Up to here the hardware of the running CPU may have read these tables. Whoever frees them must know that it is done;
    /// only a model in which steps that have been done may not be known of can tell.
    fn leave(machine: &Machine, root: *const Table) {
        if machine.config().memory != MemoryModel::Weak {
            return;
        }
        let (mut table, mut depth) = (root, 0);
        while !table.is_null() && machine.is_live(table) && depth < LEVELS {
            machine.touch(table);
            // SAFETY: in the arena, and allocated.
            table = machine.inspect(|| unsafe { &*table }.below().next().unwrap_or(core::ptr::null_mut()));
            depth += 1;
        }
    }

    /// What a CPU's root register holds.
    pub(crate) fn read_root(&self, cpu: usize) -> usize {
        self.roots[cpu].get()
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
            machine.inspect(|| walk(core::ptr::with_exposed_provenance(self.roots[cpu].get()), machine))
        })
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
                if machine.inspect(|| (self.active_mm)(cpu)) == address {
                    machine.fail(Kind::Holds, format!("cpu{cpu} has the freed {name} as active_mm"));
                }
            }
        });
    }
}
