//! `Mm`, an address space, with its two counts.
//!
//! | count | counts users of | 1 to 0 runs |
//! | --- | --- | --- |
//! | `users` | the contents: tasks, and those who revived it for a while | [`mmput`](ARef)'s teardown: unmap, flush, free tables, then one mmdrop |
//! | `count` | the struct and the root table; all users together own one | `__mmdrop`: the strategy evicts what it has to, then all is freed |
//!
//! [`Mm`] and [`MmWithUser`] are pointees in the manner of Rust-for-Linux (`rust/kernel/mm.rs`); owned references are
//! [`ARef`]s, and a reference of one kind is never taken for another: dropping an `ARef<Mm>` is mmdrop, dropping an
//! `ARef<MmWithUser>` is mmput. What a CPU borrows lazily is neither; see [`LazyMm`](crate::LazyMm).
//!
//! `count` has a cache line of its own, because under reference counting every switch between a user task and a kernel
//! thread writes it (Linux: commit 2e3025434a6b keeps `mm_count` apart for that reason).

use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::cpumask::{CpuMask, CpuMaskView};
use crate::lazy_tlb::LazyTlb;
use crate::memory::{AtomicInt, AtomicWord, Label, Labelled, Ordering::*};
use crate::mm_switch::MmSwitch;
use crate::platform::{Platform, Root, Warning};
use crate::switcher::Switcher;

/// The increment of `count`. Relaxed: who adds holds a reference or a user already.
pub const MMGRAB: Label = Label::new("mm.mmgrab");
/// The decrement of `count`. Where it may be the last one it is a full barrier: sys_membarrier borrows it when the drop ends
/// a lazy borrow, and whoever frees must see all that the other droppers did.
pub const MMDROP: Label = Label::new("mm.mmdrop");
/// The decrement of `users`. Full barrier: the last one reads what all users wrote, and a strategy that scans slots
/// without a fence of its own relies on it (pair L1).
pub const MMPUT: Label = Label::new("mm.mmput");

/// State that a strategy or an architecture keeps in each mm or for each CPU; `()` for none.
pub trait Slot: Sized {
    /// Fresh state.
    fn new() -> Self;

    /// Makes used state fresh again, when an mm's memory is used for the next one. Nobody else can see it.
    fn reinit(&self);
}

impl Slot for () {
    fn new() {}
    fn reinit(&self) {}
}

/// Something on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct CacheLine<T>(T);

/// The part of an [`Mm`] that strategies and architectures see, whatever the strategy is.
#[repr(C)]
pub struct MmCore<P: Platform> {
    count: CacheLine<P::AtomicUsize>,
    users: P::AtomicUsize,
    root: P::AtomicUsize,
    cpumask: CpuMask<P>,
    arch: <P::Arch as MmSwitch<P>>::MmState,
    data: P::MmData,
}

impl<P: Platform> MmCore<P> {
    /// The page-table root.
    #[track_caller]
    #[inline]
    pub fn root(&self) -> Root {
        Root(self.root.load(Relaxed))
    }

    /// `mm_cpumask`: the CPUs that may use this mm's tables, as far as the architecture keeps it
    /// ([`MmSwitch`] alone writes it).
    pub fn cpumask(&self) -> CpuMaskView<'_, P> {
        CpuMaskView::from(&self.cpumask)
    }

    /// `mm_cpumask`, to write.
    ///
    /// # Safety
    /// The caller is the architecture's [`MmSwitch`], whose promises hang on it.
    pub unsafe fn cpumask_of_arch(&self) -> &CpuMask<P> {
        &self.cpumask
    }

    /// The architecture's state in this mm.
    ///
    /// # Safety
    /// The caller is the architecture's [`MmSwitch`].
    pub unsafe fn arch(&self) -> &<P::Arch as MmSwitch<P>>::MmState {
        &self.arch
    }

    /// The kernel's own data.
    pub fn data(&self) -> &P::MmData {
        &self.data
    }

    /// Adds `n` references to the struct. The caller holds one, or a user, so the increment orders nothing (Linux
    /// `mmgrab`).
    ///
    /// # Safety
    /// The caller owns the new references, and gives each back once, by [`count_sub`](Self::count_sub) or as a
    /// [`CountRef`].
    #[track_caller]
    #[inline]
    pub unsafe fn count_add(&self, n: usize) {
        self.count.0.fetch_add(n, Relaxed.at(MMGRAB));
    }

    /// Takes back `n` references. Release ([`MMDROP`]): whoever drops the last one sees what was done with these.
    ///
    /// # Safety
    /// The caller owns them, and somebody owns one more until it returns.
    #[track_caller]
    pub unsafe fn count_sub(&self, n: usize) {
        let before = self.count.0.fetch_sub(n, Release.at(MMDROP));
        debug_assert!(before > n, "the caller owns one more");
    }

    /// How many references there are now; a number to print, stale at once.
    pub fn count(&self) -> usize {
        self.count.0.load(Relaxed)
    }

    /// How many users there are now; a number to print, stale at once.
    pub fn users(&self) -> usize {
        self.users.load(Relaxed)
    }
}

impl<P: Platform> fmt::Debug for MmCore<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmCore")
            .field("users", &self.users())
            .field("count", &self.count())
            .field("root", &self.root())
            .field("cpumask", &self.cpumask)
            .finish_non_exhaustive()
    }
}

/// The address of an mm that may be gone: to compare, to hand on, to give back. Not to look into.
pub struct MmPtr<P: Platform>(NonNull<MmCore<P>>);

impl<P: Platform> MmPtr<P> {
    /// From the word it was kept in; `None` for null.
    pub fn new(raw: *mut MmCore<P>) -> Option<Self> {
        NonNull::new(raw).map(MmPtr)
    }

    /// To a word.
    #[inline]
    pub fn as_ptr(self) -> *mut MmCore<P> {
        self.0.as_ptr()
    }

    /// To the platform, which frees it.
    pub(crate) fn as_non_null(self) -> NonNull<MmCore<P>> {
        self.0
    }

    /// Looks into it after all.
    ///
    /// # Safety
    /// Something keeps the mm alive for `'a`.
    pub unsafe fn as_ref<'a>(self) -> &'a MmCore<P> {
        // SAFETY: the caller's promise; an MmPtr is made of the address of an MmCore only.
        unsafe { self.0.as_ref() }
    }
}

impl<P: Platform> From<&MmCore<P>> for MmPtr<P> {
    #[inline]
    fn from(mm: &MmCore<P>) -> Self {
        MmPtr(NonNull::from(mm))
    }
}

impl<P: Platform> Hash for MmPtr<P> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<P: Platform> Clone for MmPtr<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for MmPtr<P> {}

impl<P: Platform> PartialEq for MmPtr<P> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<P: Platform> Eq for MmPtr<P> {}

impl<P: Platform> fmt::Debug for MmPtr<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One reference to the struct, on its way to the switch path, which drops it where it may be dropped.
///
/// A strategy hands it out; only the [`Switcher`] takes it. Forgetting it leaks the mm.
#[derive(Debug)]
#[must_use = "a reference to an mm that nobody drops leaks it"]
pub struct CountRef<P: Platform>(MmPtr<P>);

impl<P: Platform> CountRef<P> {
    /// Takes over one reference.
    ///
    /// # Safety
    /// The caller owns one reference to the struct of `mm` and gives it away.
    pub unsafe fn new(mm: MmPtr<P>) -> Self {
        CountRef(mm)
    }

    /// To whom it is.
    pub(crate) fn ptr(&self) -> MmPtr<P> {
        self.0
    }

    /// Gives it to whoever drops it.
    pub(crate) fn into_ptr(self) -> MmPtr<P> {
        self.0
    }
}

/// An address space whose struct and root table are alive; Linux's `struct mm_struct` held by `mm_count`.
#[repr(C)]
pub struct Mm<P: Platform, S: LazyTlb<P>> {
    core: MmCore<P>,
    strategy: S::MmState,
    switcher: NonNull<Switcher<P, S>>,
}

// SAFETY: an Mm is a set of words that any CPU may use at once, plus a pointer to a Switcher that outlives it (see
// `Mm::new`) and is used by shared reference. It is as shareable as those parts are.
unsafe impl<P: Platform, S: LazyTlb<P>> Sync for Mm<P, S>
where
    MmCore<P>: Sync,
    S::MmState: Sync,
    Switcher<P, S>: Sync,
{
}
// SAFETY: as for Sync; nothing in it belongs to the thread that made it.
unsafe impl<P: Platform, S: LazyTlb<P>> Send for Mm<P, S>
where
    MmCore<P>: Send,
    S::MmState: Send,
    Switcher<P, S>: Sync,
{
}

impl<P: Platform, S: LazyTlb<P>> Mm<P, S> {
    /// An address space with one user and one reference, both the caller's (Linux `mm_init`).
    ///
    /// The mm is not usable until it has its final address; then [`Mm::into_user`] gives out the caller's user.
    ///
    /// # Safety
    /// `switcher` outlives the mm, and `root` is the root of a page table that nobody frees before
    /// [`Platform::free_mm`] says so.
    pub unsafe fn new(switcher: NonNull<Switcher<P, S>>, platform: P, root: Root, data: P::MmData) -> Self {
        Mm {
            core: MmCore {
                count: CacheLine(AtomicWord::new(1)),
                users: AtomicWord::new(1),
                root: AtomicWord::new(root.0),
                cpumask: CpuMask::new(platform.nr_cpu_ids()),
                arch: Slot::new(),
                data,
            },
            strategy: Slot::new(),
            switcher,
        }
    }

    /// An address space from ready parts, with one user and one reference: `const`, for a kernel's static `init_mm`.
    ///
    /// # Safety
    /// As for [`Mm::new`]; `count` and `users` hold 1, and the other parts are fresh.
    #[expect(clippy::too_many_arguments, reason = "a constructor of statics takes the words one by one")]
    pub const unsafe fn from_parts(
        switcher: &'static Switcher<P, S>,
        count: P::AtomicUsize,
        users: P::AtomicUsize,
        root: P::AtomicUsize,
        cpumask: CpuMask<P>,
        arch: <P::Arch as MmSwitch<P>>::MmState,
        strategy: S::MmState,
        data: P::MmData,
    ) -> Self {
        let core = MmCore { count: CacheLine(count), users, root, cpumask, arch, data };
        Mm { core, strategy, switcher: NonNull::from_ref(switcher) }
    }

    /// Makes the memory of a freed mm a new one, with one user and one reference.
    ///
    /// # Safety
    /// The former mm was freed, nobody else can see this one yet, and `root` is as for [`Mm::new`].
    pub unsafe fn reinit(&self, root: Root) {
        self.core.count.0.store(1, Relaxed);
        self.core.users.store(1, Relaxed);
        self.core.root.store(root.0, Relaxed);
        self.core.cpumask.clear();
        self.core.arch.reinit();
        self.strategy.reinit();
    }

    /// Gives out the user that [`Mm::new`] or [`Mm::reinit`] counted.
    ///
    /// # Safety
    /// Called once for each of those, and the mm stays where it is until it is freed.
    pub unsafe fn into_user(&self) -> ARef<MmWithUser<P, S>> {
        // SAFETY: the caller owns the one user that was counted; MmWithUser is a transparent wrapper.
        unsafe { ARef::from_raw(NonNull::from(self).cast()) }
    }

    /// The part that strategies see.
    #[inline]
    pub fn core(&self) -> &MmCore<P> {
        &self.core
    }

    /// The strategy's state in this mm, for those who watch the machine from outside.
    ///
    /// # Safety
    /// It is only read. The strategy's steps are the switch path's to call.
    pub unsafe fn strategy(&self) -> &S::MmState {
        &self.strategy
    }

    /// Takes a reference to the struct (Linux `mmgrab`). Context: any.
    #[track_caller]
    pub fn mmgrab(&self) -> ARef<Mm<P, S>> {
        ARef::from(self)
    }

    /// Takes a user, if there is one still (Linux `mmget_not_zero`); `users` never goes from 0 to 1. Context: any.
    #[track_caller]
    pub fn mmget_not_zero(&self) -> Option<ARef<MmWithUser<P, S>>> {
        let mut users = self.core.users.load(Relaxed);
        while users != 0 {
            match self.core.users.compare_exchange(users, users + 1, Relaxed, Relaxed) {
                // SAFETY: the increment above is the reference that is handed out.
                Ok(_) => return Some(unsafe { ARef::from_raw(NonNull::from(self).cast()) }),
                Err(now) => users = now,
            }
        }
        None
    }

    pub(crate) fn ptr(&self) -> MmPtr<P> {
        MmPtr::from(&self.core)
    }

    /// The mm around a core.
    ///
    /// # Safety
    /// `core` is the core of an `Mm<P, S>` that is alive for `'a`.
    pub(crate) unsafe fn of<'a>(core: MmPtr<P>) -> &'a Mm<P, S> {
        // SAFETY: the core is the first field of a repr(C) struct; the caller vouches for the type and the lifetime.
        unsafe { core.0.cast().as_ref() }
    }

    pub(crate) fn switcher(&self) -> &Switcher<P, S> {
        // SAFETY: the switcher outlives the mm, by the contract of `new` and `from_parts`.
        unsafe { self.switcher.as_ref() }
    }
}

impl<P: Platform, S: LazyTlb<P>> fmt::Debug for Mm<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}

/// An address space whose contents are alive too: held by `mm_users`.
#[repr(transparent)]
#[derive(Debug)]
pub struct MmWithUser<P: Platform, S: LazyTlb<P>>(Mm<P, S>);

impl<P: Platform, S: LazyTlb<P>> MmWithUser<P, S> {
    /// Takes one more user (Linux `mmget`). Context: any.
    #[track_caller]
    pub fn mmget(&self) -> ARef<MmWithUser<P, S>> {
        ARef::from(self)
    }
}

impl<P: Platform, S: LazyTlb<P>> Deref for MmWithUser<P, S> {
    type Target = Mm<P, S>;

    fn deref(&self) -> &Mm<P, S> {
        &self.0
    }
}

/// Types that count their own references, as in Rust-for-Linux (`rust/kernel/types.rs`).
///
/// # Safety
/// The object stays alive as long as there is a reference that was taken by `inc_ref` and not yet given to `dec_ref`.
pub unsafe trait AlwaysRefCounted {
    /// Takes one reference.
    #[track_caller]
    fn inc_ref(&self);

    /// Gives one back. `object` may come of a shared reference: who frees the object does so by a pointer of its own.
    ///
    /// # Safety
    /// The caller owns one, and does not use `object` afterwards.
    #[track_caller]
    unsafe fn dec_ref(object: NonNull<Self>);
}

// SAFETY: `count` keeps the struct: only its 1 -> 0 frees it.
unsafe impl<P: Platform, S: LazyTlb<P>> AlwaysRefCounted for Mm<P, S> {
    fn inc_ref(&self) {
        // SAFETY: the new reference is the ARef's, which gives it back in `dec_ref`.
        unsafe { self.core.count_add(1) };
    }

    /// mmdrop. Context: where the strategy can free ([`LazyTlb::may_free`]), if this may be the last reference.
    unsafe fn dec_ref(mm: NonNull<Self>) {
        // SAFETY: the caller's reference keeps it alive until it is given back inside.
        let mm = unsafe { mm.as_ref() };
        // SAFETY: the caller owns the reference that is dropped.
        unsafe { mm.switcher().mmdrop(mm.ptr()) };
    }
}

// SAFETY: `users` keep the contents, and together one `count`, which keeps the struct.
unsafe impl<P: Platform, S: LazyTlb<P>> AlwaysRefCounted for MmWithUser<P, S> {
    fn inc_ref(&self) {
        self.0.core.users.fetch_add(1, Relaxed);
    }

    /// mmput. Context: process context, may sleep, if this may be the last user.
    unsafe fn dec_ref(mm: NonNull<Self>) {
        // SAFETY: the caller's user keeps it alive until it is given back inside.
        let mm = unsafe { mm.as_ref() };
        // SAFETY: the caller owns the user that is dropped.
        unsafe { mm.switcher().mmput(mm.ptr()) };
    }
}

/// An owned reference; dropping it gives the reference back.
#[derive(Debug)]
pub struct ARef<T: AlwaysRefCounted> {
    object: NonNull<T>,
    _owns: PhantomData<T>,
}

// SAFETY: an ARef is a shared reference that can be dropped on any CPU; T: Sync for the sharing, T: Send because the
// last drop may free it there.
unsafe impl<T: AlwaysRefCounted + Send + Sync> Send for ARef<T> {}
// SAFETY: as for Send.
unsafe impl<T: AlwaysRefCounted + Send + Sync> Sync for ARef<T> {}

impl<T: AlwaysRefCounted> ARef<T> {
    /// Takes over a reference that was counted already.
    ///
    /// # Safety
    /// The caller owns one reference and gives it away.
    pub unsafe fn from_raw(object: NonNull<T>) -> Self {
        ARef { object, _owns: PhantomData }
    }

    /// Gives the counted reference to the caller, who must come back with [`from_raw`](Self::from_raw).
    pub fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).object
    }
}

impl<T: AlwaysRefCounted> From<&T> for ARef<T> {
    #[track_caller]
    fn from(object: &T) -> Self {
        object.inc_ref();
        ARef { object: NonNull::from(object), _owns: PhantomData }
    }
}

impl<T: AlwaysRefCounted> Clone for ARef<T> {
    #[track_caller]
    fn clone(&self) -> Self {
        ARef::from(&**self)
    }
}

impl<T: AlwaysRefCounted> Deref for ARef<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the owned reference keeps the object alive.
        unsafe { self.object.as_ref() }
    }
}

impl<T: AlwaysRefCounted> Drop for ARef<T> {
    #[track_caller]
    fn drop(&mut self) {
        // SAFETY: this value owns one reference and is not used again.
        unsafe { T::dec_ref(self.object) }
    }
}

impl<P: Platform> MmCore<P> {
    /// Drops one reference; says whether it was the last.
    #[track_caller]
    pub(crate) fn count_dec_and_test(&self, platform: P) -> bool {
        dec_and_test(platform, &self.count.0, MMDROP)
    }

    /// Drops one user; says whether it was the last.
    #[track_caller]
    pub(crate) fn users_dec_and_test(&self, platform: P) -> bool {
        dec_and_test(platform, &self.users, MMPUT)
    }
}

#[track_caller]
fn dec_and_test<P: Platform>(platform: P, word: &P::AtomicUsize, label: Label) -> bool {
    let before = word.fetch_sub_full(1, label);
    if before == 0 {
        platform.warn(Warning::CountUnderflow);
    }
    before == 1
}
