package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"attentive.internal/deploy/process"
)

// usage is what a running process has used so far.
type usage struct {
	cpu  time.Duration // of all its threads, in the program and in the kernel
	peak int64         // the most bytes of memory that were resident at one time
}

// clockTick is the unit in which Linux counts the time of processes, whatever the
// kernel's own is.
const clockTick = time.Second / 100

// usageOf reads the usage of p from Linux's /proc.
func usageOf(p *process.Process) (u usage, err error) {
	dir := "/proc/" + strconv.Itoa(p.ID())
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u, fmt.Errorf("usage of a process: %w", err)
	}
	// The second field, in parentheses, may hold anything; user and system time
	// are the 14th and 15th.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return u, fmt.Errorf("usage of a process: %s/stat has %d fields", dir, len(fields))
	}
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return u, fmt.Errorf("usage of a process: %s/stat: %w", dir, err)
		}
		u.cpu += time.Duration(ticks) * clockTick
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return u, fmt.Errorf("usage of a process: %w", err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	if _, err := fmt.Fscan(bytes.NewReader(rest), &u.peak); err != nil {
		return u, fmt.Errorf("usage of a process: VmHWM of %s/status: %w", dir, err)
	}
	u.peak <<= 10 // kB
	return u, nil
}
