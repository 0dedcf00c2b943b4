//! A set that is small in memory while it has few members, as nearly all of the index's
//! have: one B-tree node has room for eleven, and there are sets for each pod.

use std::collections::BTreeSet;

/// More go into a tree.
const FEW_MAX: usize = 16;

/// In order, as a `BTreeSet` is.
#[derive(Clone, Debug)]
pub struct Set<T> {
    /// Sorted; empty once there are many.
    few: Vec<T>,
    many: BTreeSet<T>,
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self {
            few: Vec::new(),
            many: BTreeSet::new(),
        }
    }
}

impl<T: Ord> Set<T> {
    /// Whether it was not there.
    pub fn insert(&mut self, member: T) -> bool {
        if !self.many.is_empty() {
            return self.many.insert(member);
        }
        let Err(at) = self.few.binary_search(&member) else {
            return false;
        };
        if self.few.len() == FEW_MAX {
            self.many.extend(std::mem::take(&mut self.few));
            return self.many.insert(member);
        }
        self.few.reserve_exact(1);
        self.few.insert(at, member);
        true
    }

    /// Whether it was there.
    pub fn remove(&mut self, member: &T) -> bool {
        if self.many.remove(member) {
            return true;
        }
        match self.few.binary_search(member) {
            Ok(at) => {
                self.few.remove(at);
                true
            }
            Err(_) => false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.few.is_empty() && self.many.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.few.iter().chain(&self.many)
    }
}

impl<T: Ord> PartialEq for Set<T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn it_is_what_a_tree_is() {
        for seed in 0..200 {
            let mut random = SmallRng::seed_from_u64(seed);
            let (mut set, mut tree) = (Set::default(), BTreeSet::new());
            for _ in 0..200 {
                let member: u8 = random.random_range(0..40);
                match random.random_range(0..3) {
                    0 => assert_eq!(set.remove(&member), tree.remove(&member)),
                    _ => assert_eq!(set.insert(member), tree.insert(member)),
                }
                assert!(set.iter().eq(&tree), "seed {seed}");
                assert_eq!(set.is_empty(), tree.is_empty());
            }
        }
    }
}
