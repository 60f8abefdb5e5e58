//! CPUs, roots, and what is found.

use core::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use lazytlb::Warning;

/// The root of `init_mm`.
pub(crate) const INIT_ROOT: usize = 0;

/// How many findings are kept: the first ones say it all.
const FINDINGS: usize = 64;

/// How a CPU is interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupts {
    /// By a real-time signal, between any two instructions.
    Signals,
    /// It polls: where it enables interrupts again, in wait loops, and between the steps of a test.
    Polled,
}

/// Something that must not happen, and did. Roots are called by the number that they have in this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Finding {
    /// A CPU loads a root that is freed.
    LoadsFreed {
        /// The CPU.
        cpu: usize,
        /// The root.
        root: usize,
    },
    /// A CPU walks from a root that is freed.
    WalksFreed {
        /// The CPU.
        cpu: usize,
        /// The root.
        root: usize,
    },
    /// A root is freed that a CPU has loaded.
    FreedLoaded {
        /// The CPU.
        cpu: usize,
        /// The root.
        root: usize,
    },
    /// Page tables are freed of which a CPU's walk cache has some.
    TablesCached {
        /// The CPU.
        cpu: usize,
        /// Their root.
        root: usize,
    },
    /// A CPU's `active_mm` is freed, and the CPU looks into it.
    LooksIntoFreed {
        /// The CPU.
        cpu: usize,
    },
    /// A root is freed twice.
    FreedTwice {
        /// The root.
        root: usize,
    },
    /// An mm is freed where interrupts are off.
    FreedIrqsOff {
        /// Its root.
        root: usize,
    },
    /// The library warns.
    Warned(Warning),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::LoadsFreed { cpu, root } => write!(f, "cpu{cpu} loads the freed root {root}"),
            Finding::WalksFreed { cpu, root } => write!(f, "cpu{cpu} walks from the freed root {root}"),
            Finding::FreedLoaded { cpu, root } => write!(f, "root {root} is freed, and cpu{cpu} has it loaded"),
            Finding::TablesCached { cpu, root } => {
                write!(f, "tables of root {root} are freed, and cpu{cpu} has them in its walk cache")
            }
            Finding::LooksIntoFreed { cpu } => write!(f, "cpu{cpu} looks into a freed mm"),
            Finding::FreedTwice { root } => write!(f, "root {root} is freed twice"),
            Finding::FreedIrqsOff { root } => write!(f, "root {root} is freed with interrupts off"),
            Finding::Warned(warning) => warning.fmt(f),
        }
    }
}

/// What a CPU has, on lines of its own.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct CpuWords {
    /// The root that it has loaded.
    pub(crate) root: AtomicUsize,
    /// The root of the tables that its walk cache has some of; [`INIT_ROOT`] for none.
    walk_cache: AtomicUsize,
    /// Its walks and its flushes exclude each other.
    walks: AtomicBool,
    /// Somebody has asked for an interrupt.
    pub(crate) kicked: AtomicBool,
    pub(crate) online: AtomicBool,
    pub(crate) irqs_off: AtomicBool,
    pub(crate) in_irq: AtomicBool,
    pub(crate) preempt_count: AtomicUsize,
    /// Its thread, as the C library names it; whoever sends a signal has seen it online.
    pub(crate) thread: AtomicUsize,
}

impl CpuWords {
    fn with_walks(&self, f: impl FnOnce()) {
        while self.walks.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            std::thread::yield_now();
        }
        f();
        self.walks.store(false, Release);
    }
}

/// What a machine has.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How many CPUs; no more than 128.
    pub cpus: usize,
    /// Memory for so many mms at a time.
    pub mms: usize,
    /// How CPUs are interrupted.
    pub interrupts: Interrupts,
    /// Planted: no flush reaches a walk cache.
    pub never_flushed: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { cpus: 4, mms: 4096, interrupts: Interrupts::Polled, never_flushed: false }
    }
}

/// A switch path without its type, and what to call with it.
pub(crate) type Handler = (usize, fn(usize));

/// What a CPU does just before it loads a root: for tests that stop it there. It is given the CPU and the root.
pub(crate) type BeforeLoad = Box<dyn Fn(usize, usize) + Send + Sync>;

/// A root: how often its memory was used, and whether it is now.
#[derive(Default)]
struct RootSlot {
    uses: AtomicUsize,
    /// Its tables map something: walks find them.
    mapped: AtomicBool,
}

/// The machine below the kernel.
pub struct Hardware {
    pub(crate) interrupts: Interrupts,
    never_flushed: bool,
    pub(crate) cpus: Box<[CpuWords]>,
    roots: Box<[RootSlot]>,
    /// The slots of roots that are free; the last one freed is used first.
    free: Mutex<Vec<usize>>,
    /// How many were made, and freed.
    pub(crate) made: AtomicUsize,
    pub(crate) freed: AtomicUsize,
    pub(crate) kicks: AtomicUsize,
    booted: Instant,
    /// How many ticks were passed over.
    skipped: AtomicUsize,
    pub(crate) work_asked: AtomicBool,
    /// A CPU that is about to go, one more than its number: all others stop meanwhile, between two steps.
    pub(crate) stopping: AtomicUsize,
    /// How many have stopped.
    pub(crate) stopped: AtomicUsize,
    pub(crate) handler: OnceLock<Handler>,
    pub(crate) before_load: OnceLock<BeforeLoad>,
    findings: [OnceLock<Finding>; FINDINGS],
    found: AtomicUsize,
}

impl fmt::Debug for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPUs, {:?}", self.cpus.len(), self.interrupts)
    }
}

impl Hardware {
    pub(crate) fn new(Config { cpus, mms, interrupts, never_flushed }: Config) -> Hardware {
        Hardware {
            interrupts,
            never_flushed,
            cpus: (0..cpus).map(|_| CpuWords::default()).collect(),
            roots: (0..mms).map(|_| RootSlot::default()).collect(),
            free: Mutex::new((0..mms).rev().collect()),
            made: AtomicUsize::new(0),
            freed: AtomicUsize::new(0),
            kicks: AtomicUsize::new(0),
            booted: Instant::now(),
            skipped: AtomicUsize::new(0),
            work_asked: AtomicBool::new(false),
            stopping: AtomicUsize::new(0),
            stopped: AtomicUsize::new(0),
            handler: OnceLock::new(),
            before_load: OnceLock::new(),
            findings: [const { OnceLock::new() }; FINDINGS],
            found: AtomicUsize::new(0),
        }
    }

    /// Writes down what was found. Context: any, an interrupt included: nothing is allocated, and nobody waits for anybody.
    pub(crate) fn finds(&self, finding: Finding) {
        if let Some(place) = self.findings.get(self.found.fetch_add(1, Relaxed)) {
            let fresh = place.set(finding);
            debug_assert!(fresh.is_ok(), "each place is given once");
        }
    }

    /// What was found, and how often anything was.
    pub(crate) fn found(&self) -> (Vec<Finding>, usize) {
        (self.findings.iter().filter_map(|place| place.get().cloned()).collect(), self.found.load(Relaxed))
    }

    /// A root that nobody uses, and the slot of its mm. `None` if there are too many at a time.
    pub(crate) fn new_root(&self) -> Option<(usize, usize)> {
        let slot = self.free.lock().expect("nobody panics with it").pop()?;
        self.made.fetch_add(1, Relaxed);
        let root = &self.roots[slot];
        root.mapped.store(true, SeqCst);
        // From even to odd: it is alive.
        let uses = root.uses.fetch_add(1, SeqCst) + 1;
        Some((slot, self.number(slot, uses)))
    }

    /// What a root is called: by its slot, and how often that was used.
    fn number(&self, slot: usize, uses: usize) -> usize {
        1 + slot + self.roots.len() * (uses / 2)
    }

    fn slot_of(&self, root: usize) -> usize {
        (root - 1) % self.roots.len()
    }

    /// Whether a root is in use.
    pub(crate) fn is_alive(&self, root: usize) -> bool {
        if root == INIT_ROOT {
            return true;
        }
        let slot = self.slot_of(root);
        let uses = self.roots[slot].uses.load(SeqCst);
        uses & 1 != 0 && self.number(slot, uses) == root
    }

    /// Its entries are cleared: no walk finds tables below it any more.
    pub(crate) fn unmap(&self, root: usize) {
        self.roots[self.slot_of(root)].mapped.store(false, SeqCst);
    }

    /// The tables below it are freed.
    pub(crate) fn free_tables(&self, root: usize) {
        for (cpu, words) in self.cpus.iter().enumerate() {
            if words.walk_cache.load(SeqCst) == root {
                self.finds(Finding::TablesCached { cpu, root });
            }
        }
    }

    /// It is freed, and its slot may be used again.
    pub(crate) fn free_root(&self, root: usize) {
        let slot = self.slot_of(root);
        let alive = self.roots[slot].uses.load(SeqCst);
        let is_mine = self.number(slot, alive) == root && alive & 1 != 0;
        if !is_mine || self.roots[slot].uses.compare_exchange(alive, alive + 1, SeqCst, SeqCst).is_err() {
            return self.finds(Finding::FreedTwice { root });
        }
        // Whoever loads it says so first, and looks whether it is alive then: one of the two sees the other.
        for (cpu, words) in self.cpus.iter().enumerate() {
            if words.root.load(SeqCst) == root {
                self.finds(Finding::FreedLoaded { cpu, root });
            }
        }
        self.freed.fetch_add(1, Relaxed);
        self.free.lock().expect("nobody panics with it").push(slot);
    }

    /// A CPU walks the tables of the root that it has loaded, for a program or by speculation. Context: on that CPU, interrupts off.
    pub(crate) fn walk(&self, cpu: usize) {
        let words = &self.cpus[cpu];
        let root = words.root.load(SeqCst);
        if !self.is_alive(root) {
            return self.finds(Finding::WalksFreed { cpu, root });
        }
        if root == INIT_ROOT {
            return;
        }
        words.with_walks(|| {
            if self.roots[self.slot_of(root)].mapped.load(SeqCst) {
                words.walk_cache.store(root, SeqCst);
            }
        });
    }

    /// A CPU's walk cache is flushed. Context: interrupts off.
    pub(crate) fn flush(&self, cpu: usize) {
        if self.never_flushed {
            return;
        }
        let words = &self.cpus[cpu];
        words.with_walks(|| words.walk_cache.store(INIT_ROOT, SeqCst));
    }

    /// Milliseconds since it was booted, and what was passed over.
    pub(crate) fn jiffies(&self) -> usize {
        self.booted.elapsed().as_millis() as usize + self.skipped.load(Relaxed)
    }

    /// The clock goes on by itself, and by so many ticks at once.
    pub(crate) fn skip(&self, ticks: usize) {
        self.skipped.fetch_add(ticks, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(hardware: &Hardware) -> Vec<String> {
        hardware.found().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_root_is_used_again_under_another_number() {
        let hardware = Hardware::new(Config { cpus: 1, mms: 2, ..Config::default() });
        let (slot, first) = hardware.new_root().unwrap();
        assert!(hardware.is_alive(first));
        hardware.free_root(first);
        let (again, second) = hardware.new_root().unwrap();
        assert!(again == slot && second != first);
        assert!(hardware.is_alive(second) && !hardware.is_alive(first));
        assert!(hardware.new_root().is_some() && hardware.new_root().is_none(), "there is memory for two");
    }

    #[test]
    fn a_root_that_is_freed_twice_is_found() {
        let hardware = Hardware::new(Config { cpus: 1, mms: 2, ..Config::default() });
        let (_, root) = hardware.new_root().unwrap();
        hardware.free_root(root);
        hardware.free_root(root);
        assert_eq!(found(&hardware), ["root 1 is freed twice"]);
    }

    #[test]
    fn tables_that_a_walk_cache_has_are_found() {
        let hardware = Hardware::new(Config { cpus: 2, mms: 2, ..Config::default() });
        let (_, root) = hardware.new_root().unwrap();
        hardware.cpus[1].root.store(root, SeqCst);
        hardware.walk(1);
        hardware.unmap(root);
        hardware.free_tables(root);
        assert_eq!(found(&hardware), ["tables of root 1 are freed, and cpu1 has them in its walk cache"]);
        hardware.flush(1);
        // Nothing is mapped any more, so nothing gets in.
        hardware.walk(1);
        hardware.free_tables(root);
        assert_eq!(hardware.found().1, 1);
    }

    #[test]
    fn the_first_findings_are_kept_and_all_are_counted() {
        let hardware = Hardware::new(Config { cpus: 1, mms: 1, ..Config::default() });
        (0..100).for_each(|root| hardware.finds(Finding::FreedTwice { root }));
        let (kept, found) = hardware.found();
        assert_eq!((kept.len(), found), (FINDINGS, 100));
        assert_eq!(kept[0], Finding::FreedTwice { root: 0 });
    }
}
