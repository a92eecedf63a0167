//go:build !race

package faults_test

const instrumented = false
