package queue

// FewSlots is how many messages are held while there are suspects.
const FewSlots = fewSlots

// Waiting reports whether m waits to be delivered again.
func Waiting(m *Message) bool {
	m.consumer.mu.Lock()
	defer m.consumer.mu.Unlock()
	return m.state == finished && m.reply == ""
}
