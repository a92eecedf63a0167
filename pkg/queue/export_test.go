package queue

import "time"

// FewSlots is how many messages are held while there are suspects.
const FewSlots = fewSlots

// Waiting reports whether m waits to be delivered again.
func Waiting(m *Message) bool {
	m.consumer.mu.Lock()
	defer m.consumer.mu.Unlock()
	return m.state == finished && m.reply == ""
}

// SetRemoval changes, before c runs, how long it waits for removals and how often it
// counts before it looks.
func (c *Consumer) SetRemoval(limit time.Duration, counts int) {
	c.removal.limit, c.removal.counts = limit, counts
}

// SetLook changes, before c runs, how long its first look may take.
func (c *Consumer) SetLook(d time.Duration) { c.removal.look = d }
