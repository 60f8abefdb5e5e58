//! [`LabNotifier`]: the machine as the chain sees it, and the mm that it stands in.

use core::cell::Cell;

use lazytlb_core::memory::{At, AtomicInt, AtomicWord, LocalWord, Memory, Ordering::*};
use lazytlb_machine::{Kind, Machine, ObjectKind, Sim, SimLocal, SimWord};
use lazytlb_mmu_notifier::former::{Form, FormerChain};
use lazytlb_mmu_notifier::walks::ChainId;
use lazytlb_mmu_notifier::{
    Chain, Epochs, Hazards, Interrupted, MmapWrite, NotifierKernel, NotifierMm, NotifierTask, SpinLock, Srcu, Walks,
    Warning,
};

use crate::names::{Mutant, Scheme};
use crate::rules::Invariant;
use crate::world::World;

/// How many walks have a word of their own: fewer than there are, so that the others' count is needed.
const WALKS: usize = 1;

/// Forgets for how long structures are placed.
pub(crate) fn placed<T: ?Sized>(placed: &mut T) -> &'static T {
    let placed: *const T = placed;
    // SAFETY: in the arena, which is kept as long as the machine runs.
    unsafe { &*placed }
}

/// Words that only their task writes, zero at the start.
pub(crate) fn locals(machine: &Machine, name: &'static str, count: usize) -> &'static [SimLocal<usize>] {
    placed(machine.place_slice(name, ObjectKind::Other, count, |_| LocalWord::new(0)))
}

/// Words that several write, zero at the start.
pub(crate) fn shared(machine: &Machine, name: &'static str, count: usize) -> &'static [SimWord<usize>] {
    placed(machine.place_slice(name, ObjectKind::Other, count, |_| AtomicWord::new(0)))
}

thread_local! {
    /// The world of the machine that runs on this thread.
    static WORLD: Cell<*const World> = const { Cell::new(core::ptr::null()) };
}

/// Runs `f` with this world as the thread's.
pub(crate) fn in_world<R>(world: &World, f: impl FnOnce() -> R) -> R {
    let before = WORLD.replace(world);
    let result = f();
    WORLD.set(before);
    result
}

/// The world that runs on this thread.
pub(crate) fn world() -> &'static World {
    // SAFETY: `in_world` has set it, and keeps it until the machine has stopped.
    unsafe { WORLD.get().as_ref() }.expect("a world runs")
}

/// The task that runs here; the first one's words serve before any runs.
pub(crate) fn this_task() -> usize {
    Machine::try_with(|machine| machine.current_task().index()).unwrap_or(0)
}

fn preempt_disable() {
    Machine::try_with(Machine::preempt_disable);
}

fn preempt_enable() {
    Machine::try_with(Machine::preempt_enable);
}

/// What the kernel keeps for each task.
pub(crate) struct TaskWords {
    /// What the chain keeps of it.
    notifiers: NotifierTask<SimLocal<usize>>,
    /// How often it was told not to block.
    non_block: SimLocal<usize>,
}

impl TaskWords {
    pub(crate) fn new() -> TaskWords {
        TaskWords { notifiers: NotifierTask::default(), non_block: LocalWord::new(0) }
    }
}

/// A scheme of walks, whichever it is.
pub(crate) enum AnyWalks {
    Hazards(Hazards<LabNotifier, WALKS>),
    Epochs(Epochs<LabNotifier, WALKS>),
    Srcu(Srcu<LabNotifier, WALKS>),
}

impl AnyWalks {
    pub(crate) fn new(scheme: Scheme) -> AnyWalks {
        match scheme {
            Scheme::Hazards => AnyWalks::Hazards(Hazards::default()),
            Scheme::Epochs => AnyWalks::Epochs(Epochs::default()),
            Scheme::Srcu => AnyWalks::Srcu(Srcu::default()),
        }
    }
}

/// A walk under either of them.
pub(crate) enum AnyWalk {
    Hazards(<Hazards<LabNotifier, WALKS> as Walks<LabNotifier>>::Walk),
    Epochs(<Epochs<LabNotifier, WALKS> as Walks<LabNotifier>>::Walk),
    Srcu(<Srcu<LabNotifier, WALKS> as Walks<LabNotifier>>::Walk),
}

// SAFETY: each is one.
unsafe impl Walks<LabNotifier> for AnyWalks {
    type Walk = AnyWalk;

    fn begin(&self, kernel: LabNotifier, chain: ChainId) -> AnyWalk {
        match self {
            AnyWalks::Hazards(walks) => AnyWalk::Hazards(walks.begin(kernel, chain)),
            AnyWalks::Epochs(walks) => AnyWalk::Epochs(walks.begin(kernel, chain)),
            AnyWalks::Srcu(walks) => AnyWalk::Srcu(walks.begin(kernel, chain)),
        }
    }

    fn end(&self, kernel: LabNotifier, chain: ChainId, walk: AnyWalk) {
        match (self, walk) {
            (AnyWalks::Hazards(walks), AnyWalk::Hazards(walk)) => walks.end(kernel, chain, walk),
            (AnyWalks::Epochs(walks), AnyWalk::Epochs(walk)) => walks.end(kernel, chain, walk),
            (AnyWalks::Srcu(walks), AnyWalk::Srcu(walk)) => walks.end(kernel, chain, walk),
            _ => unreachable!("a walk ends under the scheme that it began under"),
        }
    }

    fn synchronize(&self, kernel: LabNotifier, chain: ChainId) {
        match self {
            _ if world().has(Mutant::WalksNotAwaited) => {}
            AnyWalks::Hazards(walks) => walks.synchronize(kernel, chain),
            AnyWalks::Epochs(walks) => walks.synchronize(kernel, chain),
            AnyWalks::Srcu(walks) => walks.synchronize(kernel, chain),
        }
    }
}

/// Those who wait: they look again when they were woken, and not before.
pub(crate) struct LabQueue {
    /// How often somebody was woken.
    woken: SimWord<usize>,
}

/// The lock of a chain.
pub(crate) struct LabLock {
    word: SimWord<usize>,
    /// What the last one who held it has left: the sequence of interval subscribers, and how many were in their tree.
    left: [SimWord<usize>; 2],
}

impl LabLock {
    /// Who holds it is about to release it: the chain is as it is to be found.
    fn is_left(&self) {
        // SAFETY: the lock is held, or a mutant's.
        let state = || unsafe { world().mm().chain.interval_state() };
        let look =
            |machine: &Machine| machine.inspect(|| (state(), self.left.each_ref().map(|word| word.load(Relaxed))));
        let Some((state, [seq, inserted])) = Machine::try_with(look) else { return };
        let is_odd = state.seq & 1 != 0;
        if is_odd && state.seq == seq && state.inserted != inserted {
            Invariant::I10.broken(&raw const *self);
        }
        if state.active == 0 && (is_odd || state.deferred > 0) {
            Invariant::I11.broken(&raw const *self);
        }
        world().checks_sequences();
        for (word, value) in self.left.iter().zip([state.seq, state.inserted]) {
            word.poke(value);
        }
    }
}

impl SpinLock<LabNotifier> for LabLock {
    fn new() -> Self {
        LabLock { word: AtomicWord::new(0), left: [AtomicWord::new(0), AtomicWord::new(0)] }
    }

    fn lock(&self, _: LabNotifier) {
        if world().looks_unlocked() || world().has(Mutant::ChainUnlocked) {
            return;
        }
        preempt_disable();
        Sim.spin_until(|| self.word.compare_exchange(0, 1, Acquire, Relaxed).ok());
    }

    unsafe fn unlock(&self, _: LabNotifier) {
        if world().looks_unlocked() {
            return;
        }
        self.is_left();
        if world().has(Mutant::ChainUnlocked) {
            return;
        }
        self.word.store(0, Release);
        preempt_enable();
    }
}

/// The handle of the kernel that runs on this thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LabNotifier;

impl Memory for LabNotifier {
    type AtomicUsize = SimWord<usize>;
    type AtomicPtr<T> = SimWord<*mut T>;
    type LocalUsize = SimLocal<usize>;
    type LocalPtr<T> = SimLocal<*mut T>;

    fn fence(self, at: impl Into<At>) {
        Sim.fence(at);
    }
    fn spin_hint(self) {
        Sim.spin_hint();
    }
}

// SAFETY: one of the world's; a word for each task; a mutant's lock, which is none, is found by what comes of it.
unsafe impl NotifierKernel for LabNotifier {
    type Mm = LabMm;
    type Lock = LabLock;
    type WaitQueue = LabQueue;
    type Walks = AnyWalks;

    fn new_wait_queue() -> LabQueue {
        LabQueue { woken: AtomicWord::new(0) }
    }
    fn walks(&self) -> &AnyWalks {
        world().walks
    }
    fn walk_hint(self) -> usize {
        Machine::try_with(Machine::this_cpu).unwrap_or(0)
    }
    fn task(&self) -> &NotifierTask<SimLocal<usize>> {
        &world().words[this_task()].notifiers
    }
    fn wait_event<R>(self, queue: &LabQueue, mut ready: impl FnMut() -> Option<R>) -> R {
        self.might_sleep();
        loop {
            let woken = queue.woken.load(Acquire);
            if let Some(result) = world().waits(&mut ready) {
                return result;
            }
            Sim.spin_until(|| (queue.woken.load(Acquire) != woken).then_some(()));
        }
    }
    fn wake_up_all(self, queue: &LabQueue) {
        queue.woken.fetch_add(1, Release);
    }
    fn might_sleep(self) {
        let words = &world().words[this_task()];
        if words.non_block.get() > 0 {
            Invariant::I8.broken(&raw const *words);
        }
        Machine::try_with(|machine| machine.might_sleep_by("I8: "));
    }
    fn non_block_start(self) {
        let word = &world().words[this_task()].non_block;
        word.set(word.get() + 1);
    }
    fn non_block_end(self) {
        let word = &world().words[this_task()].non_block;
        word.set(word.get() - 1);
    }
    fn warn(self, warning: Warning) {
        Machine::with(|machine| machine.fail(Kind::Warning, warning.to_string()));
    }
}

/// A lock of the kernel's or of a driver's.
pub(crate) struct Lock {
    word: SimWord<usize>,
    /// Whether who wants it sleeps.
    sleeps: bool,
}

impl Lock {
    pub(crate) fn new(sleeps: bool) -> Lock {
        Lock { word: AtomicWord::new(0), sleeps }
    }

    pub(crate) fn lock(&self) {
        if self.sleeps {
            LabNotifier.might_sleep();
        } else {
            preempt_disable();
        }
        let me = this_task() + 1;
        Sim.spin_until(|| self.word.compare_exchange(0, me, Acquire, Relaxed).ok());
    }

    /// Takes it if that is possible at once.
    pub(crate) fn try_lock(&self) -> bool {
        let is_taken = self.word.compare_exchange(0, this_task() + 1, Acquire, Relaxed).is_ok();
        if is_taken && !self.sleeps {
            preempt_disable();
        }
        is_taken
    }

    pub(crate) fn unlock(&self) {
        self.word.store(0, Release);
        if !self.sleeps {
            preempt_enable();
        }
    }

    /// Whether the task that runs holds it. Not a step.
    pub(crate) fn is_mine(&self) -> bool {
        Machine::with(|machine| machine.inspect(|| self.word.load(Relaxed) == this_task() + 1))
    }
}

/// An address space.
pub(crate) struct LabMm {
    /// `mm_users`.
    pub(crate) users: SimWord<usize>,
    /// `mm_count`.
    pub(crate) count: SimWord<usize>,
    /// Who is told.
    pub(crate) chain: Chain<LabNotifier>,
    /// The same in a former form, where a test asks for one.
    pub(crate) former: FormerChain<LabNotifier>,
    mmap: Lock,
    /// All other locks by which an invalidation can begin: how many hold one.
    invalidating: SimWord<usize>,
}

// SAFETY: a field.
unsafe impl NotifierMm<LabNotifier> for LabMm {
    fn notifiers(&self) -> &Chain<LabNotifier> {
        &self.chain
    }
}

/// In [`LabMm::invalidating`]: registration holds them all.
const REGISTERS: usize = 1 << 16;

impl LabMm {
    pub(crate) fn new(form: Form) -> LabMm {
        LabMm {
            users: AtomicWord::new(1),
            count: AtomicWord::new(1),
            chain: Chain::default(),
            former: FormerChain::new(form),
            mmap: Lock::new(true),
            invalidating: AtomicWord::new(0),
        }
    }

    /// Takes one of the locks that are enough to invalidate.
    pub(crate) fn begins_to_invalidate(&self) {
        let word = &self.invalidating;
        Sim.spin_until(|| {
            let seen = word.load(Relaxed);
            (seen < REGISTERS && word.compare_exchange(seen, seen + 1, Acquire, Relaxed).is_ok()).then_some(())
        });
    }

    /// Releases it.
    pub(crate) fn has_invalidated(&self) {
        self.invalidating.fetch_sub(1, Release);
    }

    /// Takes its mmap lock for writing.
    pub(crate) fn mmap_write_lock(&'static self) -> Mmap {
        self.mmap.lock();
        Mmap(self)
    }
}

/// An mm's mmap lock, held for writing.
pub(crate) struct Mmap(&'static LabMm);

impl Drop for Mmap {
    fn drop(&mut self) {
        self.0.mmap.unlock();
    }
}

// SAFETY: whoever invalidates is counted from before the start to behind the end; a mutant does not look.
unsafe impl MmapWrite<LabNotifier> for Mmap {
    fn mm(&self) -> &LabMm {
        self.0
    }
    fn mm_users(&self) -> usize {
        self.0.users.load(Relaxed)
    }
    fn mm_take_all_locks(&mut self) -> Result<(), Interrupted> {
        if !world().has(Mutant::LockNotTaken) {
            let word = &self.0.invalidating;
            Sim.spin_until(|| word.compare_exchange(0, REGISTERS, Acquire, Relaxed).ok());
        }
        Ok(())
    }
    fn mm_drop_all_locks(&mut self) {
        if !world().has(Mutant::LockNotTaken) {
            self.0.invalidating.store(0, Release);
        }
    }
}
