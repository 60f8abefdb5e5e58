//! Objects: what lies in the arena, for good or from a cache, and where.

use core::marker::PhantomData;
use core::ops::Range;
use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_kasan::{Addr, BadFree, CacheId, ObjectKind, Track};

use crate::arena::WORD;
use crate::machine::{BASE, Machine};
use crate::state::Next;
use crate::verdict::Kind;

/// A cache of `T`s in the arena.
#[derive(Debug)]
pub struct Cache<T> {
    pub(crate) id: CacheId,
    size: usize,
    _of: PhantomData<fn() -> T>,
}

impl<T> Clone for Cache<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Cache<T> {}

impl Machine {
    /// Puts a structure into the arena for good.
    ///
    /// It is never dropped, and must own nothing that needs to be: every execution starts from the same words.
    ///
    /// # Panics
    /// If the arena is full.
    pub fn place<T>(&self, name: &'static str, kind: ObjectKind, value: T) -> &mut T {
        let mut once = Some(value);
        &mut self.place_slice(name, kind, 1, |_| once.take().expect("a slice of one"))[0]
    }

    /// Puts an array into the arena for good, each element made by `init`. As [`place`](Self::place).
    ///
    /// # Panics
    /// If the arena is full.
    #[expect(clippy::mut_from_ref, reason = "each call gives out another part of the arena, once")]
    pub fn place_slice<T>(
        &self,
        name: &'static str,
        kind: ObjectKind,
        len: usize,
        mut init: impl FnMut(usize) -> T,
    ) -> &mut [T] {
        let addr = self.kasan.borrow_mut().place_static_array(name, kind, size_of::<T>(), len, align_of::<T>());
        let addr = addr.unwrap_or_else(|full| panic!("{name} does not fit into {} bytes: {full}", self.arena.len()));
        let first: NonNull<T> = self.host(addr).cast();
        for index in 0..len {
            // SAFETY: the window reserved the bytes of `len` elements, aligned.
            let element = unsafe { first.add(index) };
            // SAFETY: as above; nobody else has this part of the arena.
            unsafe { element.write(init(index)) };
        }
        // SAFETY: all elements are initialised, the arena outlives the borrow, and nobody else has this part of it.
        unsafe { core::slice::from_raw_parts_mut(first.as_ptr(), len) }
    }

    /// Makes a cache of `slots` objects, each made by `init` once. None of them is allocated.
    ///
    /// # Panics
    /// If the arena is full.
    pub fn create_cache<T>(
        &self,
        name: &'static str,
        kind: ObjectKind,
        slots: usize,
        mut init: impl FnMut(usize) -> T,
    ) -> Cache<T> {
        let id = self.kasan.borrow_mut().create_cache(name, kind, size_of::<T>(), align_of::<T>(), slots);
        let id = id.unwrap_or_else(|full| panic!("{name} does not fit into {} bytes: {full}", self.arena.len()));
        let cache = Cache { id, size: size_of::<T>(), _of: PhantomData };
        for slot in 0..slots {
            let addr = self.kasan.borrow().slot_addr(id, slot);
            self.slots.borrow_mut().push(self.words(addr, cache.size));
            // SAFETY: the window reserved the bytes of the slot, aligned, and nobody else has them.
            unsafe { self.slot(cache, slot).write(init(slot)) };
        }
        cache
    }

    /// Where slot `index` of a cache is.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot<T>(&self, cache: Cache<T>, index: usize) -> NonNull<T> {
        self.host(self.kasan.borrow().slot_addr(cache.id, index)).cast()
    }

    /// Allocates an object, as a step, or [`quietly`](Self::quietly) as part of one; its memory holds what it held before. `None` if there is no more. `at` is who
    /// asked for it.
    pub fn alloc<T>(&self, cache: Cache<T>, at: &'static Location<'static>) -> Option<NonNull<T>> {
        let entry = self.kasan.borrow().next_free(cache.id)?;
        self.heap_step(self.words(entry, cache.size));
        let track = || self.track(at);
        let addr = self.kasan.borrow_mut().alloc(cache.id, track).ok()?;
        self.toggle_live(addr);
        if let (true, Some(word)) = (self.is_weak(), self.arena_word(addr)) {
            let me = self.this_cpu();
            self.weak.borrow_mut().alloc(me, word);
        }
        self.note(|| format!("allocate {}", self.name_of_addr(addr)));
        Some(self.host(addr).cast())
    }

    /// As [`alloc`](Self::alloc), any of the free objects: each is explored. On a machine with
    /// [`Config::ticks`](crate::Config::ticks), where they have no order.
    pub fn alloc_any<T>(&self, cache: Cache<T>, at: &'static Location<'static>) -> Option<NonNull<T>> {
        self.point(Next::Heap);
        let free = self.kasan.borrow().free_slots(cache.id).len();
        if free == 0 {
            return None;
        }
        let picked = usize::from(self.choose(free as u8));
        let slot = self.kasan.borrow().free_slots(cache.id)[picked];
        self.prefer(cache, slot);
        self.quietly(|| self.alloc(cache, at))
    }

    /// Allocates an object before the first execution.
    ///
    /// # Panics
    /// If there is no more.
    pub fn alloc_at_setup<T>(&self, cache: Cache<T>) -> NonNull<T> {
        let addr = self.kasan.borrow_mut().alloc(cache.id, Track::default).expect("as many slots as the program needs");
        self.host(addr).cast()
    }

    /// Frees an object, as a step. A double or invalid free ends the execution. `at` is who asked for it.
    pub fn free<T>(&self, object: NonNull<T>, at: &'static Location<'static>) {
        let addr = self.addr_of_host(object.as_ptr().addr());
        let size = self.kasan.borrow().object_at(addr).map_or(0, |object| object.size);
        self.heap_step(self.words(addr, size));
        let track = || self.track(at);
        let freed = self.kasan.borrow_mut().free(addr, track);
        if let Err(bad) = freed {
            self.write_report(lazytlb_kasan::Title::Free(bad), addr, at);
            let kind = if bad == BadFree::DoubleFree { Kind::DoubleFree } else { Kind::InvalidFree };
            self.fail(kind, format!("{bad} of {} in {}", self.name_of_addr(addr), self.function()));
        }
        if let (true, Some(word)) = (self.is_weak(), self.arena_word(addr)) {
            self.free_weakly(word, addr, at);
        }
        if self.config.ticks {
            self.forget(addr, size);
        }
        self.toggle_live(addr);
        self.note(|| format!("free {}", self.name_of_addr(addr)));
    }

    /// An object has come or gone: a part of the hash where things are alike.
    fn toggle_live(&self, addr: Addr) {
        if !self.arena.names().is_empty() {
            self.arena.toggle_live(self.arena_word(addr).expect("in the arena"));
        }
    }

    /// What a freed object held, and when it was freed, tells states apart that nobody else can.
    fn forget(&self, addr: Addr, size: usize) {
        self.arena.undo(self.words(addr, size));
        let cache = self.kasan.borrow().cache_at(addr);
        if let Some(cache) = cache {
            self.kasan.borrow_mut().settle(cache, None);
        }
    }

    /// Has the next object that is allocated from a cache be at slot `index`, if that is free. Not a step.
    pub fn prefer<T>(&self, cache: Cache<T>, index: usize) {
        self.kasan.borrow_mut().settle(cache.id, Some(index));
    }

    /// Whether the object at this address is allocated. Not a step.
    pub fn is_live<T>(&self, object: *const T) -> bool {
        let Some(word) = self.arena.index(object.addr()) else { return true };
        self.kasan.borrow().check(self.addr_of(word), 1, lazytlb_kasan::Access::Read).is_ok()
    }

    /// The name of the object that a pointer points into, such as `mm_struct[1]+8`.
    pub fn name_of_ptr<T>(&self, pointer: *const T) -> String {
        match self.arena.offset(pointer.addr() as u64) {
            Some(offset) => self.name_of_addr(Addr(BASE.0 + offset as u64)),
            None => format!("{:#x}", pointer.addr()),
        }
    }

    fn host(&self, addr: Addr) -> NonNull<u8> {
        self.arena.at((addr.0 - BASE.0) as usize)
    }

    fn addr_of_host(&self, address: usize) -> Addr {
        match self.arena.offset(address as u64) {
            Some(offset) => Addr(BASE.0 + offset as u64),
            None => Addr(address as u64),
        }
    }

    #[inline]
    pub(crate) fn addr_of(&self, word: usize) -> Addr {
        Addr(BASE.0 + (word * WORD) as u64)
    }

    pub(crate) fn arena_word(&self, addr: Addr) -> Option<usize> {
        let offset = addr.0.checked_sub(BASE.0)? as usize;
        (offset < self.arena.len()).then_some(offset / WORD)
    }

    fn words(&self, addr: Addr, size: usize) -> Range<usize> {
        match self.arena_word(addr) {
            Some(first) => first..(first + size.div_ceil(WORD)).min(self.arena.len() / WORD),
            None => 0..0,
        }
    }

    pub(crate) fn poke(&self, address: usize, value: usize) {
        match self.arena.index(address) {
            Some(word) => {
                if self.arena.write(word, value as u64) {
                    self.state.borrow_mut().changed(word);
                }
                if self.is_weak() {
                    self.weak.borrow_mut().forget(word, value as u64);
                }
            }
            None => panic!("a simulated word outside the arena of the machine that runs"),
        }
    }
}
