//! The MMUs of the simulated machine: what each CPU has loaded, and what its hardware has cached of the tables.
//!
//! Each CPU has a root register with a *tag* beside it (x86's PCID, arm64's ASID, power's PID; 0 on a machine without
//! tags). What it caches carries the tag that was loaded then, and is used while that tag is loaded again:
//!
//! * a *translation*: the frame that the one page of an address space maps to. A user access uses it if it is there, and
//!   otherwise walks the tables from the loaded root and caches what it finds. A walker may cache it at any time, because
//!   hardware speculates;
//! * a *partial walk*: a pointer to a lower table, as paging-structure caches hold it. Only walkers have them; they go on
//!   from there step by step.
//!
//! Loading a root drops what is cached under its tag, unless the load says that it is kept. A flush drops all, or what a
//! tag has. Nothing is ever dropped by itself: hardware may, but what is gone cannot be stale.
//!
//! AMD's INVLPGB is done at the last moment: by the TLBSYNC of the CPU that has begun it. Hardware may be earlier, but then
//! less is stale.
//!
//! # The verdict
//!
//! A user access through a translation to a frame that is not, or is no longer, the page of the address space that the
//! task runs in is a *stale translation*. The model's kernel takes the frame off the books after the flush and before it
//! frees it, so an access that finds another frame comes after a flush of the page was complete, or after the frame has
//! found another use.

use core::cell::RefCell;
use core::panic::Location;
use std::rc::Rc;

use lazytlb_core::memory::LocalWord;
use lazytlb_core::platform::Root;
use lazytlb_machine::{Kind, Machine, MemoryModel, ObjectKind, SimLocal};

use crate::program::Program;
use crate::tables::Table;

/// How many tags the hardware tells apart: more than a program has address spaces, or CPUs.
pub const TAGS: usize = 18;

/// Among the broadcasts that a CPU has begun, one that is of all tags.
const ALL_TAGS: usize = 1 << TAGS;

/// How many levels of tables there are.
const LEVELS: usize = 3;

/// The MMUs of all CPUs.
#[derive(Debug)]
pub(crate) struct Mmus {
    /// What each CPU has loaded.
    roots: &'static [SimLocal<usize>],
    /// What its hardware caches, where the program could tell.
    caches: Vec<Option<&'static Cache>>,
    /// The broadcasts that each CPU has begun and not waited for: a bit for each tag, and [`ALL_TAGS`].
    begun: &'static [SimLocal<usize>],
    /// Whether a program accesses user memory, so that cached translations matter.
    caches_frames: bool,
}

/// What a CPU's hardware caches.
#[derive(Debug)]
struct Cache {
    /// The tag beside the root register.
    tag: SimLocal<usize>,
    /// Written by each flush from elsewhere, so that every step that looks at the cache is known to depend on it.
    flush: SimLocal<usize>,
    /// The CPU's walker among the machine's places, if it has one.
    walker: Option<usize>,
    /// What is cached under each tag.
    tagged: [Tagged; TAGS],
}

impl Cache {
    /// Drops all, or what is cached under a tag, as part of the step that is under way.
    fn drop(&self, tag: Option<usize>) {
        self.refresh();
        match tag {
            Some(tag) => self.tagged[tag].drop_all(),
            None => self.tagged.iter().for_each(Tagged::drop_all),
        }
    }
}

impl Cache {
    /// From here on the walker finds in the tables what the CPU that is running would find.
    fn refresh(&self) {
        if let Some(walker) = self.walker {
            Machine::try_with(|machine| machine.refresh(walker));
        }
    }
}

/// What is cached under one tag.
#[derive(Debug)]
struct Tagged {
    /// Where the page is; null if no translation is cached.
    frame: SimLocal<*mut Table>,
    /// The table that a walker reads next; null if it starts again from the root.
    table: SimLocal<*mut Table>,
    /// How many levels it has come down.
    depth: SimLocal<usize>,
}

impl Tagged {
    fn new() -> Self {
        let null = || LocalWord::new(core::ptr::null_mut());
        Tagged { frame: null(), table: null(), depth: LocalWord::new(0) }
    }

    /// Forgets all, as part of the step that is under way.
    fn drop_all(&self) {
        self.frame.poke(core::ptr::null_mut());
        self.table.poke(core::ptr::null_mut());
        self.depth.poke(0);
    }
}

thread_local! {
    /// The MMUs of the machine that is being set up.
    static PLACED: RefCell<Option<Rc<Mmus>>> = const { RefCell::new(None) };
}

impl Mmus {
    /// Places the MMUs of a machine, which boots on the tables at `init`.
    pub(crate) fn place(machine: &Machine, program: &Program, init: Root) -> Rc<Mmus> {
        let cpus = machine.config().cpus;
        let roots: *const [SimLocal<usize>] =
            machine.place_slice("cr3", ObjectKind::PerCpu, cpus, |_| LocalWord::new(init.0));
        let caches_frames = program.accesses();
        let cache = |cpu: usize| {
            (caches_frames || program.walkers.contains(&cpu)).then(|| {
                let cache = Cache {
                    tag: LocalWord::new(0),
                    flush: LocalWord::new(0),
                    // Agents come after the CPUs.
                    walker: program.walkers.iter().position(|&walker| walker == cpu).map(|index| cpus + index),
                    tagged: core::array::from_fn(|_| Tagged::new()),
                };
                let cache: *const Cache = machine.place("tlb", ObjectKind::PerCpu, cache);
                // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
                unsafe { &*cache }
            })
        };
        let caches = (0..cpus).map(cache).collect();
        let begun: *const [SimLocal<usize>] =
            machine.place_slice("invlpgb", ObjectKind::PerCpu, cpus, |_| LocalWord::new(0));
        // SAFETY: as above.
        let roots = unsafe { &*roots };
        // SAFETY: as above.
        let begun = unsafe { &*begun };
        let mmus = Rc::new(Mmus { roots, caches, begun, caches_frames });
        PLACED.set(Some(Rc::clone(&mmus)));
        mmus
    }

    /// Those of the machine that is being set up.
    pub(crate) fn of_setup() -> Rc<Mmus> {
        PLACED.with_borrow(|placed| placed.clone()).expect("placed first thing in set-up")
    }

    /// How many CPUs there are.
    pub(crate) fn cpus(&self) -> usize {
        self.roots.len()
    }

    /// A CPU loads a root with its tag; with `keep`, what is cached under the tag stays in use.
    pub(crate) fn load_root(&self, cpu: usize, root: Root, tag: usize, keep: bool) {
        let former = self.roots[cpu].peek();
        self.roots[cpu].set(root.0);
        if former != root.0 {
            Machine::try_with(|machine| leave(machine, core::ptr::with_exposed_provenance(former)));
        }
        let Some(cache) = self.caches[cpu] else { return };
        cache.refresh();
        cache.tag.poke(tag);
        if !keep {
            cache.tagged[tag].drop_all();
        }
    }

    /// What a CPU's root register holds, read by that CPU.
    pub(crate) fn read_root(&self, cpu: usize) -> usize {
        self.roots[cpu].get()
    }

    /// What a CPU's root register holds, looked at from outside.
    pub(crate) fn root(&self, cpu: usize) -> usize {
        self.roots[cpu].peek()
    }

    /// The CPU that runs this drops all that it caches, or what it caches under a tag: one step, of the CPU that it happens
    /// on.
    pub(crate) fn flush_local(&self, tag: Option<usize>) {
        if self.caches.iter().all(Option::is_none) {
            return;
        }
        Machine::with(|machine| {
            machine.agent_step(|| {
                if let Some(cache) = self.caches[machine.this_cpu()] {
                    cache.drop(tag);
                }
            });
        });
    }

    /// The hardware of all CPUs that are online drops all that it caches, or what it caches under a tag: a step for each. Whether
    /// a CPU is reached is known when its step is done.
    pub(crate) fn flush_all(&self, tag: Option<usize>) {
        Machine::with(Machine::hardware_is_done);
        for (cpu, cache) in self.caches.iter().enumerate() {
            let Some(cache) = cache else { continue };
            cache.flush.set(0);
            if Machine::with(|machine| machine.is_online(cpu)) {
                cache.drop(tag);
            }
        }
    }

    /// A CPU begins to have dropped what all CPUs cache, or what they cache under a tag.
    pub(crate) fn invlpgb(&self, cpu: usize, tag: Option<usize>) {
        let bit = tag.map_or(ALL_TAGS, |tag| 1 << tag);
        self.begun[cpu].set(self.begun[cpu].get() | bit);
    }

    /// A CPU waits for what it has begun: it is done now.
    pub(crate) fn tlbsync(&self, cpu: usize) {
        let begun = self.begun[cpu].get();
        self.begun[cpu].set(0);
        if begun & ALL_TAGS != 0 {
            return self.flush_all(None);
        }
        for tag in (0..TAGS).filter(|tag| begun & 1 << tag != 0) {
            self.flush_all(Some(tag));
        }
    }

    /// What is cached on a CPU, in words.
    pub(crate) fn describe(&self, machine: &Machine, cpu: usize) -> String {
        let Some(cache) = self.caches[cpu].filter(|_| self.caches_frames) else { return String::new() };
        let cached = cache.tagged.iter().enumerate().filter(|(_, tagged)| !tagged.frame.peek().is_null());
        let cached: Vec<String> = cached
            .map(|(tag, tagged)| format!("{} under tag {tag}", machine.name_of_ptr(tagged.frame.peek())))
            .collect();
        let cached = if cached.is_empty() { "nothing".to_owned() } else { cached.join(", ") };
        format!(", tag {}, and caches {cached}", cache.tag.peek())
    }

    /// The running task of a CPU accesses its page: one step, as an instruction is. `page` is where the kernel's books
    /// have the page, null if it is not mapped; `of` is the name of the mm.
    pub(crate) fn access(&self, machine: &Machine, cpu: usize, page: &SimLocal<*mut Table>, of: impl Fn() -> String) {
        let at = Location::caller();
        let cache = self.caches[cpu].expect("a program with accesses has caches");
        machine.agent_step(|| {
            machine.look(cache.flush.word());
            let tagged = &cache.tagged[cache.tag.peek()];
            let cached = tagged.frame.peek();
            let frame = if cached.is_null() { self.walk(machine, cpu, at) } else { cached };
            if frame.is_null() {
                // A page fault, which the kernel would answer with a signal.
                return;
            }
            tagged.frame.poke(frame);
            if machine.is_live(frame) && machine.look(page.word()) == frame {
                return;
            }
            let name = machine.name_of_ptr(frame);
            machine.report_rule("stale-translation", "User access through a translation to frame", frame, at);
            let what = if machine.is_live(frame) { "which is not its page" } else { "which is freed" };
            machine.fail(Kind::StaleTranslation, format!("I9: a task of {} on cpu{cpu} accesses {name}, {what}", of()));
        });
    }

    /// The whole walk of one access: the frame, or null.
    fn walk(&self, machine: &Machine, cpu: usize, at: &'static Location<'static>) -> *mut Table {
        let mut table = core::ptr::with_exposed_provenance_mut(machine.look(self.roots[cpu].word()));
        for _ in 0..LEVELS {
            table = read_entry(machine, cpu, table, "page walk", at);
            if table.is_null() {
                break;
            }
        }
        table
    }

    /// The life of a CPU's walker: it takes one step of a walk after the other, and may stop after any.
    pub(crate) fn walk_for_ever(&self, cpu: usize) {
        let goes_on = || {
            Machine::with(|machine| {
                machine.checkpoint(0, false);
                machine.choose(2) == 0
            })
        };
        while goes_on() {
            Machine::with(|machine| machine.agent_step(|| self.walk_on(machine, cpu)));
        }
    }

    /// One step of a walk.
    fn walk_on(&self, machine: &Machine, cpu: usize) {
        let Some(cache) = self.caches[cpu] else { return };
        let root = core::ptr::with_exposed_provenance_mut(machine.look(self.roots[cpu].word()));
        machine.look(cache.flush.word());
        let walk = &cache.tagged[cache.tag.peek()];
        let (table, depth) =
            if walk.table.peek().is_null() { (root, 0) } else { (walk.table.peek(), walk.depth.peek()) };
        let below = read_entry(machine, cpu, table, "walker", Location::caller());
        let ends = below.is_null() || depth + 1 == LEVELS;
        if ends && !below.is_null() && self.caches_frames && walk.frame.peek().is_null() {
            walk.frame.poke(below);
        }
        walk.table.poke(if ends { core::ptr::null_mut() } else { below });
        walk.depth.poke(if ends { 0 } else { depth + 1 });
    }
}

/// Up to here the hardware of the running CPU may have read these tables. Whoever frees them must know that it is done; only
/// a model in which steps that have been done may not be known of can tell.
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

/// The hardware reads the one entry of a table that matters, as part of the step that is under way.
fn read_entry(
    machine: &Machine,
    cpu: usize,
    table: *mut Table,
    who: &str,
    at: &'static Location<'static>,
) -> *mut Table {
    if !machine.is_live(table) {
        machine.report_rule("hardware-reaches-freed-table", "Page walk of table", table, at);
        let name = machine.name_of_ptr(table);
        machine.fail(Kind::HardwareReaches, format!("I1: cpu{cpu}'s {who} reads the freed {name}"));
    }
    // SAFETY: in the arena, and allocated.
    machine.look(unsafe { &*table }.first())
}
