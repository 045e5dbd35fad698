//! The two classes of a table's rows.

use std::ops::{Index, IndexMut};

/// Rows near the watermark are committed often; late ones are scattered over many partitions, so
/// they are gathered for longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowClass {
    Recent,
    Late,
}

impl RowClass {
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
    pub recent: T,
    pub late: T,
}

impl<T> PerClass<T> {
    pub fn both(value: T) -> Self
    where
        T: Clone,
    {
        Self {
            recent: value.clone(),
            late: value,
        }
    }

    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerClass<U> {
        PerClass {
            recent: f(self.recent),
            late: f(self.late),
        }
    }

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
