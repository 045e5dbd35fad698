//! The two classes of a table's rows: how often they are committed.
//!
//! A row of a stream is [`RowClass::Late`] where its hour is more than one before that of its
//! partition's watermark. For example, at a watermark of 12:10 a row of 11:59 is recent, and one of
//! 10:59 is late. Neither says that a row came too late for its windows: that depends on their
//! lateness, and such rows are in a table of their own.
//!
//! The format on the disk calls the class `old`: in the names and tags of files, and in app ids.

use std::ops::{Index, IndexMut};

/// How often a row is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowClass {
    /// Near the watermark: committed often.
    Recent,
    /// Scattered over many partitions, so gathered for longer.
    Late,
}

impl RowClass {
    /// Recent rows are committed first.
    pub const ALL: [Self; 2] = [Self::Recent, Self::Late];

    /// Its name in file names, app ids and tags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recent => "recent",
            Self::Late => "old",
        }
    }
}

/// A value for each class of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerClass<T> {
    /// That of [`RowClass::Recent`].
    pub recent: T,
    /// That of [`RowClass::Late`].
    pub late: T,
}

impl<T> PerClass<T> {
    /// The same value for both.
    pub fn both(value: T) -> Self
    where
        T: Clone,
    {
        Self {
            recent: value.clone(),
            late: value,
        }
    }

    /// Applies a function to both values.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerClass<U> {
        PerClass {
            recent: f(self.recent),
            late: f(self.late),
        }
    }

    /// The values, that of recent rows first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.recent, &self.late].into_iter()
    }
}

impl<T> Index<RowClass> for PerClass<T> {
    type Output = T;

    fn index(&self, class: RowClass) -> &T {
        match class {
            RowClass::Recent => &self.recent,
            RowClass::Late => &self.late,
        }
    }
}

impl<T> IndexMut<RowClass> for PerClass<T> {
    fn index_mut(&mut self, class: RowClass) -> &mut T {
        match class {
            RowClass::Recent => &mut self.recent,
            RowClass::Late => &mut self.late,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_indexes_its_own_value() {
        let mut rows = PerClass { recent: 1, late: 2 };
        rows[RowClass::Late] += 40;
        assert_eq!(RowClass::ALL.map(|class| rows[class]), [1, 42]);
        assert_eq!(
            rows.map(|n| n + 1),
            PerClass {
                recent: 2,
                late: 43
            }
        );
        assert_eq!(RowClass::ALL.map(RowClass::name), ["recent", "old"]);
    }
}
