package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// clockTick is the unit in which Linux counts the time of processes, whatever the
// kernel's own is.
const clockTick = time.Second / 100

// cpuTime returns the time that a process has used so far, in all its threads and
// for it in the kernel.
func cpuTime(id int) (total time.Duration, err error) {
	name := fmt.Sprintf("/proc/%d/stat", id)
	stat, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	// The second field, in parentheses, may hold anything; user and system time
	// are the 14th and 15th.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s has %d fields", name, len(fields))
	}
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		total += time.Duration(ticks) * clockTick
	}
	return total, nil
}
