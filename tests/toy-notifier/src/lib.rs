//! A kernel of this process: tasks are threads, sleeping is yielding, and all that a subscriber is told is written down.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};
use std::sync::{LazyLock, Mutex, RwLock, RwLockWriteGuard};

use lazytlb_core::memory::At;
use lazytlb_core::mm::AlwaysRefCounted;
use lazytlb_core::native::{Local, Native};
use lazytlb_core::{ARef, Memory};
use lazytlb_mmu_notifier::{
    Chain, Contract, Epochs, Hazards, Interrupted, Invalidation, Mirror, MmapWrite, MmuNotifier, Node, NotifierKernel,
    NotifierMm, NotifierTask, PollingLock, Refusing, SharedTables, Srcu, Walks, Warning, Work, WouldBlock,
};

/// How walks are seen.
pub trait Scheme: Copy + Send + Sync + 'static {
    /// Whether the kernel has MMU notifiers.
    const CONFIG_MMU_NOTIFIER: bool = true;
    /// It.
    type Walks: Walks<Toy<Self>> + 'static;
    /// That of all chains.
    fn walks() -> &'static Self::Walks;
}

macro_rules! scheme {
    ($(#[$doc:meta])* $name:ident, $walks:ident $(, $config:expr)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Scheme for $name {
            $(const CONFIG_MMU_NOTIFIER: bool = $config;)?
            type Walks = $walks<Toy<$name>, 4>;
            fn walks() -> &'static Self::Walks {
                static WALKS: LazyLock<$walks<Toy<$name>, 4>> = LazyLock::new(Default::default);
                &WALKS
            }
        }
    };
}

scheme!(
    /// By [`Hazards`].
    ByHazards, Hazards
);
scheme!(
    /// By [`Epochs`].
    ByEpochs, Epochs
);
scheme!(
    /// By [`Srcu`].
    BySrcu, Srcu
);
scheme!(
    /// A kernel without MMU notifiers.
    CompiledOut, Hazards, false
);

/// The kernel.
#[derive(Debug)]
pub struct Toy<S>(PhantomData<S>);

impl<S> Default for Toy<S> {
    fn default() -> Self {
        Toy(PhantomData)
    }
}

impl<S> Toy<S> {
    /// A handle.
    pub fn new() -> Self {
        Toy(PhantomData)
    }
}

impl<S> Clone for Toy<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Toy<S> {}

thread_local! {
    static TASK: &'static NotifierTask<Local<AtomicUsize>> = Box::leak(Box::default());
    static HINT: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed)
    };
    static NON_BLOCK: Cell<usize> = const { Cell::new(0) };
    static WORK: Cell<Option<Vec<Work>>> = const { Cell::new(Some(Vec::new())) };
    static WARNINGS: Cell<Vec<Warning>> = const { Cell::new(Vec::new()) };
}

/// What this thread was warned of since the last time.
pub fn warnings() -> Vec<Warning> {
    WARNINGS.take()
}

/// Does what this thread has left to its worker, and says how much that was.
pub fn run_work() -> usize {
    let work = WORK.replace(Some(Vec::new())).unwrap_or_default();
    let count = work.len();
    work.into_iter().for_each(Work::run);
    count
}

/// This thread has no worker, until it runs one ([`run_work`]).
pub fn without_worker() {
    WORK.set(None);
}

/// Sleeps, if that is allowed here.
pub fn sleep() {
    assert_eq!(NON_BLOCK.get(), 0, "sleeping where it must not block");
    std::thread::yield_now();
}

impl<S: Scheme> Memory for Toy<S> {
    type AtomicUsize = AtomicUsize;
    type AtomicPtr<T> = AtomicPtr<T>;
    type LocalUsize = Local<AtomicUsize>;
    type LocalPtr<T> = Local<AtomicPtr<T>>;

    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }
    fn spin_hint(self) {
        std::thread::yield_now();
    }
}

// SAFETY: one static for each kernel; a word for each thread; the lock is a word that is exchanged.
unsafe impl<S: Scheme> NotifierKernel for Toy<S> {
    const CONFIG_MMU_NOTIFIER: bool = S::CONFIG_MMU_NOTIFIER;
    type Mm = ToyMm<S>;
    type Lock = PollingLock<Self>;
    type WaitQueue = ();
    type Walks = S::Walks;

    fn new_wait_queue() {}
    fn walks(&self) -> &S::Walks {
        S::walks()
    }
    fn walk_hint(self) -> usize {
        HINT.with(|hint| *hint)
    }
    fn task(&self) -> &NotifierTask<Local<AtomicUsize>> {
        TASK.with(|task| *task)
    }
    fn wait_event<R>(self, (): &(), ready: impl FnMut() -> Option<R>) -> R {
        self.spin_until(ready)
    }
    fn wake_up_all(self, (): &()) {}
    fn might_sleep(self) {
        assert_eq!(NON_BLOCK.get(), 0, "may sleep where it must not block");
    }
    fn non_block_start(self) {
        NON_BLOCK.set(NON_BLOCK.get() + 1);
    }
    fn non_block_end(self) {
        NON_BLOCK.set(NON_BLOCK.get() - 1);
    }
    fn queue_work(self, work: Work) -> Result<(), Work> {
        let Some(mut all) = WORK.take() else { return Err(work) };
        all.push(work);
        WORK.set(Some(all));
        Ok(())
    }
    fn warn(self, warning: Warning) {
        let mut warnings = WARNINGS.take();
        warnings.push(warning);
        WARNINGS.set(warnings);
    }
}

/// An address space.
pub struct ToyMm<S: Scheme> {
    /// `mm_users`.
    pub users: AtomicUsize,
    /// Who is told.
    pub chain: Chain<Toy<S>>,
    mmap: Mutex<()>,
    /// All other locks by which an invalidation can begin.
    pub others: RwLock<()>,
    /// A signal comes before the others are taken.
    pub signal: AtomicUsize,
    /// `mm_count`.
    count: AtomicUsize,
    /// The box that it is in, as it was given.
    boxed: AtomicPtr<Self>,
}

// SAFETY: a field.
unsafe impl<S: Scheme> NotifierMm<Toy<S>> for ToyMm<S> {
    fn notifiers(&self) -> &Chain<Toy<S>> {
        &self.chain
    }
}

// SAFETY: what is in a box goes with the last reference; what is not has one of its own, which is never given back.
unsafe impl<S: Scheme> AlwaysRefCounted for ToyMm<S> {
    fn inc_ref(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    unsafe fn dec_ref(mm: NonNull<Self>) {
        // SAFETY: the caller's reference keeps it.
        let mm = unsafe { mm.as_ref() };
        let boxed = mm.boxed.load(Relaxed);
        if mm.count.fetch_sub(1, AcqRel) == 1 {
            // SAFETY: from `boxed`, and this was the last reference.
            drop(unsafe { Box::from_raw(boxed) });
        }
    }
}

impl<S: Scheme> fmt::Debug for ToyMm<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chain.fmt(f)
    }
}

impl<S: Scheme> Default for ToyMm<S> {
    fn default() -> Self {
        ToyMm {
            users: AtomicUsize::new(1),
            chain: Chain::default(),
            mmap: Mutex::new(()),
            others: RwLock::new(()),
            signal: AtomicUsize::new(0),
            count: AtomicUsize::new(1),
            boxed: AtomicPtr::default(),
        }
    }
}

impl<S: Scheme> ToyMm<S> {
    /// One with a user.
    pub fn new() -> Self {
        ToyMm::default()
    }

    /// One with a user, which goes with the last reference.
    pub fn boxed() -> ARef<Self> {
        let boxed = Box::into_raw(Box::new(ToyMm::new()));
        let mm = NonNull::new(boxed).expect("a box is somewhere");
        // SAFETY: just made.
        unsafe { mm.as_ref() }.boxed.store(boxed, Relaxed);
        // SAFETY: it begins with one.
        unsafe { ARef::from_raw(mm) }
    }

    /// How many references there are (`mm_count`).
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Takes its mmap lock for writing.
    pub fn mmap_write_lock(&self) -> ToyMmap<'_, S> {
        ToyMmap { mm: self, _mmap: self.mmap.lock().unwrap(), others: None }
    }
}

/// Its mmap lock, held for writing.
#[derive(Debug)]
pub struct ToyMmap<'a, S: Scheme> {
    mm: &'a ToyMm<S>,
    _mmap: std::sync::MutexGuard<'a, ()>,
    others: Option<RwLockWriteGuard<'a, ()>>,
}

// SAFETY: whoever invalidates here holds `others` for reading from start to end.
unsafe impl<S: Scheme> MmapWrite<Toy<S>> for ToyMmap<'_, S> {
    fn mm(&self) -> &ToyMm<S> {
        self.mm
    }
    fn mm_users(&self) -> usize {
        self.mm.users.load(Relaxed)
    }
    fn mm_take_all_locks(&mut self) -> Result<(), Interrupted> {
        if self.mm.signal.load(Relaxed) != 0 {
            return Err(Interrupted);
        }
        self.others = Some(self.mm.others.write().unwrap());
        Ok(())
    }
    fn mm_drop_all_locks(&mut self) {
        self.others = None;
    }
}

/// A subscriber that writes down what it is told.
#[derive(Default, Debug)]
pub struct Recorder {
    /// Its name.
    pub name: &'static str,
    /// Where it writes.
    pub log: &'static Log,
    /// It refuses what must not block.
    pub refuses: bool,
    /// It refuses whatever it is.
    pub always: bool,
    /// It says that what it is asked about was accessed.
    pub young: bool,
}

/// What several subscribers were told, in order.
#[derive(Default, Debug)]
pub struct Log(Mutex<Vec<String>>);

impl Default for &'static Log {
    fn default() -> Self {
        Box::leak(Box::default())
    }
}

impl Log {
    /// Writes something down.
    pub fn push(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    /// What was written down since the last time.
    pub fn take(&self) -> String {
        self.0.lock().unwrap().drain(..).collect::<Vec<_>>().join(" ")
    }
}

impl Recorder {
    /// Of this name, into this log.
    pub fn new(name: &'static str, log: &'static Log) -> Self {
        Recorder { name, log, ..Recorder::default() }
    }

    fn told(&self, what: &str) {
        self.log.push(format!("{}:{what}", self.name));
    }
}

impl<S: Scheme> MmuNotifier<Toy<S>> for Recorder {
    fn release(&self, _: &ToyMm<S>) {
        self.told("release");
    }
    fn clear_flush_young(&self, _: &ToyMm<S>, start: usize, end: usize) -> bool {
        self.told(&format!("clear_flush_young({start},{end})"));
        self.young
    }
    fn clear_young(&self, _: &ToyMm<S>, _: usize, _: usize) -> bool {
        self.told("clear_young");
        self.young
    }
    fn test_young(&self, _: &ToyMm<S>, _: usize) -> bool {
        self.told("test_young");
        self.young
    }
}

impl<S: Scheme> Mirror<Toy<S>> for Recorder {
    fn invalidate_range_start(&self, _: &ToyMm<S>, invalidation: Invalidation<'_>) {
        if invalidation.is_blockable() {
            sleep();
        }
        self.told("start");
    }
    fn invalidate_range_end(&self, _: &ToyMm<S>, _: Invalidation<'_>) {
        self.told("end");
    }
}

impl<S: Scheme> Refusing<Toy<S>> for Recorder {
    fn invalidate_range_start(&self, _: &ToyMm<S>, invalidation: Invalidation<'_>) -> Result<(), WouldBlock> {
        let refuses = self.always || self.refuses && !invalidation.is_blockable();
        self.told(if refuses { "refuses" } else { "start" });
        if refuses { Err(WouldBlock) } else { Ok(()) }
    }
}

impl<S: Scheme> SharedTables<Toy<S>> for Recorder {
    fn arch_invalidate_secondary_tlbs(&self, _: &ToyMm<S>, start: usize, end: usize) {
        self.told(&format!("flush({start},{end})"));
    }
}

/// The node of a subscriber that lives as long.
pub fn mirror<S: Scheme>(subscriber: &Recorder) -> Node<Toy<S>> {
    let subscriber: NonNull<Recorder> = NonNull::from(subscriber);
    // SAFETY: the tests keep it.
    unsafe { Node::new(Contract::Mirror(subscriber)) }
}

/// Likewise, of one that may refuse.
pub fn refusing<S: Scheme>(subscriber: &Recorder) -> Node<Toy<S>> {
    let subscriber: NonNull<Recorder> = NonNull::from(subscriber);
    // SAFETY: as above.
    unsafe { Node::new(Contract::Refusing(subscriber)) }
}

/// Likewise, of one that walks the CPU's tables.
pub fn shared_tables<S: Scheme>(subscriber: &Recorder) -> Node<Toy<S>> {
    let subscriber: NonNull<Recorder> = NonNull::from(subscriber);
    // SAFETY: as above.
    unsafe { Node::new(Contract::SharedTables(subscriber)) }
}
