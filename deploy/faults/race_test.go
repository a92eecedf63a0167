//go:build race

package faults_test

// instrumented says that this program looks for races, and is slow.
const instrumented = true
