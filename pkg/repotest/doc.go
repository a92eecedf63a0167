// Package repotest keeps the rules of this repository that a test can keep:
// which way imports point, what is documented, how long files and functions
// are, which names are refused, what stands at the top level, what both workers
// may not share by copying, which metrics dashboards, rules and READMEs may name, and
// that links and tests in READMEs exist.
//
// It holds tests only. Every rule is also shown a small tree that breaks it. The
// rules read the whole workspace, of which Go's test cache sees this module
// alone: run them with -count=1 after a change elsewhere.
package repotest
